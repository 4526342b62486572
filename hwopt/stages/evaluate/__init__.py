"""Accuracy of the deployed model."""
