"""YAML text in, settings out, with the line of every value."""
