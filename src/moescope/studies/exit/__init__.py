"""A classifier that leaves the model early, with a bound on what that costs."""
