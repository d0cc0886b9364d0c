"""Distil an MLP layer into thousands of tiny experts, with the controls that make it evidence."""
