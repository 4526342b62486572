"""Timing that can be believed: paired and interleaved calls. It knows no runtime and no model."""
