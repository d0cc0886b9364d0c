"""What a command would cost, from a model's config and the texts alone."""

from moescope.planning.plan import Plan, SeriesPlan, plan, plan_series

__all__ = ["Plan", "SeriesPlan", "plan", "plan_series"]
