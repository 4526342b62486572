"""How fast a model would be on a device that is not here: a calibrated roofline, with its interval."""
