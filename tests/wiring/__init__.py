"""Is every study wired as it says? Planted truths that each split and each control must show through the public API.

What is tested here is not a formula but which rows, which model and which labels go into it: see ``tests/mutants``, which puts
a fault into each such place and shows that a test of this folder fails.
"""
