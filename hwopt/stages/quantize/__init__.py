"""Quantize a network, post-training or by training."""
