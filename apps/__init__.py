"""Uses of distilled sets: architecture search and continual learning."""
