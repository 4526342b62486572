"""Several trainings of one network: the best of them, or all together."""
