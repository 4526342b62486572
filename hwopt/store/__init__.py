"""Files known by their digest, and what finished steps left behind."""
