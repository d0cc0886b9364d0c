"""A cache of experts, simulated over a trace: which are loaded, under which policy, and how few it could be."""

from moescope.routing.cache.served import Prefill, Served, served
from moescope.routing.cache.simulate import POLICIES, Loads, Policy, ranking, simulate, uniform_trace

__all__ = ["POLICIES", "Loads", "Policy", "Prefill", "Served", "ranking", "served", "simulate", "uniform_trace"]
