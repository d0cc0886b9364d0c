"""Models: loading them, the places where they can be read, the embedded ones, random twins."""

from moescope.models.load import LoadedModel, from_model, load
from moescope.models.sites import SitesLike, describe_sites, parse_sites
from moescope.models.taps import TapPoint
from moescope.models.twin import random_twin
from moescope.zoo import card, embedded, list_models

__all__ = [
    "LoadedModel",
    "SitesLike",
    "TapPoint",
    "card",
    "describe_sites",
    "embedded",
    "from_model",
    "list_models",
    "load",
    "parse_sites",
    "random_twin",
]
