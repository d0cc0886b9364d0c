"""Routers that name a prompt's task while the model runs: their fit, their use, their files."""

from moescope.runtime.route.router import Named, TaskRouter
from moescope.runtime.route.store import load_router, save_router
from moescope.runtime.route.watch import name_tasks, stream, watching

__all__ = ["Named", "TaskRouter", "load_router", "name_tasks", "save_router", "stream", "watching"]
