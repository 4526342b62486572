"""Fewer channels, or zeros in place: what must go together, what matters, how much goes."""
