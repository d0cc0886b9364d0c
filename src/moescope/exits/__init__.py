"""Leave a model early with a guarantee, and name a prompt's task while it runs."""

from moescope.exits.classifier import ExitClassifier, Exits
from moescope.exits.route_study import RouteSettings, RouteStudy, route
from moescope.exits.router import Named, TaskRouter
from moescope.exits.settings import ExitSettings
from moescope.exits.store import load_exit, load_router, save_exit, save_router
from moescope.exits.study import ExitStudy, early_exit
from moescope.exits.watch import name_tasks, stream, watching

__all__ = [
    "ExitClassifier",
    "ExitSettings",
    "ExitStudy",
    "Exits",
    "Named",
    "RouteSettings",
    "RouteStudy",
    "TaskRouter",
    "early_exit",
    "load_exit",
    "load_router",
    "name_tasks",
    "route",
    "save_exit",
    "save_router",
    "stream",
    "watching",
]
