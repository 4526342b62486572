"""Train a network from scratch."""
