"""Planted truths of every study, for `make truths`."""
