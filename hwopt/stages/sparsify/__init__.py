"""Zeros in place: unstructured and N:M sparsity."""
