"""Adapters to runtimes that execute models."""
