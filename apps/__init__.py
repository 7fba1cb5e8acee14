"""Uses of distilled sets: architecture search, and later continual learning."""
