"""The network as it is before training."""
