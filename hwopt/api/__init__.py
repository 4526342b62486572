"""The rooms without the pipeline: what ``import hwopt`` offers."""
