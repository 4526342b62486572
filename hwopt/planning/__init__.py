"""Profile and hardware to a plan, or every reason why not."""
