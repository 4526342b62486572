"""Arrays in, arrays out: the reference that torch and vendor code is tested against."""
