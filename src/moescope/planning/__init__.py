"""What a command would cost, from a model's config and the texts alone."""

from moescope.planning.plan import Plan, plan

__all__ = ["Plan", "plan"]
