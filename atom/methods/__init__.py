"""Methods of distillation: `method` says what one is, `registry` knows them by name; then a file a method.

docs/add-a-method.md adds one from outside. This module imports nothing: `--help` lists the methods without torch.
"""
