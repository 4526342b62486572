"""Latency, paired with the float model."""
