"""A learner that outlives its experiment: a directory that takes new classes in, step after step."""
