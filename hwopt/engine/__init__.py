"""Runs a plan: cache, workdir, call, commit, record."""
