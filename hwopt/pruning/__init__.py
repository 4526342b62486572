"""Structured pruning: Torch-Pruning finds what must go together, hwopt decides what goes."""
