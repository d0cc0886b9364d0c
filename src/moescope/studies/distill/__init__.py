"""Distil an MLP layer into thousands of tiny experts, with the controls that make it evidence.

After "Secret mixtures of experts inside your LLM" (arXiv 2512.18452).
"""
