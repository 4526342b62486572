"""Train a network further."""
