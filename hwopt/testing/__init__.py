"""Contract suites and tiny models, shipped for the authors of plug-ins."""
