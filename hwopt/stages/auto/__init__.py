"""Decide width, layers and precision by measuring on the target."""
