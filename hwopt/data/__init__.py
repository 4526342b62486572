"""Data sets behind a registry; the user's own by ``module:function``."""
