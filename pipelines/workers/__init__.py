"""Ray: the cluster, its actors and tasks, what runs remotely, and what happens when a worker dies."""
