"""The task of a prompt, named from the model's first layers, or called unknown."""

from moescope.studies.route.study import RouteSettings, RouteStudy, route

__all__ = ["RouteSettings", "RouteStudy", "route"]
