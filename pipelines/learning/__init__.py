"""A step of a learner: its images, its memory, the learning on a worker, and a version written."""
