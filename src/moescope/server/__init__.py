"""A live page and a JSON API: what a text is classified as and how deep, and what fires while a model writes."""

from moescope.server.limits import Limits
from moescope.server.served import Served, gather

__all__ = ["Limits", "Served", "gather"]
