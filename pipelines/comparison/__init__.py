"""Methods of distillation through one pool of workers: what each is to do, the work, and what is told of it."""
