"""The commands, and what they share: the Ray cluster, the store, progress, and MLflow tracking."""
