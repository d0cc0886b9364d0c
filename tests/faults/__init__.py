"""Faults of machine and system, each at every place where it can strike; ``python -m tests.faults`` writes docs/faults.md."""
