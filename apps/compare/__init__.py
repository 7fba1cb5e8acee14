"""Methods of distillation side by side: accuracies paired by seed, costs, published numbers, and the report."""
