"""torch as a runtime: a point of reference, not a way to deploy."""
