"""Remove channels."""
