"""A small model zoo and the road to the user's own."""
