"""Steps of a pipeline, each a room with its own algorithms."""
