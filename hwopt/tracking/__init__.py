"""The ledger of a run, and trackers that are fed from it."""
