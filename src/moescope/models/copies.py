"""The same model in another process: loaded by its recipe, kept, and compared before it is used."""

from __future__ import annotations

from collections import OrderedDict

from moescope.cluster import rank_device
from moescope.errors import InputError
from moescope.models.load import LoadedModel, load
from moescope.models.spread import Recipe
from moescope.models.twin import random_twin

_KEPT = 2  # a study reads a model and its twin
_copies: OrderedDict[Recipe, LoadedModel] = OrderedDict()


def copy_of(recipe: Recipe, fingerprint: str) -> LoadedModel:
    """The model of a recipe, loaded where this process has not done so yet.

    Raises:
        InputError: it cannot be loaded here, or is not the model of that fingerprint.
    """
    if recipe not in _copies:
        options = dict(recipe.options)
        loaded = load(recipe.source, **{**options, "device": rank_device(options.get("device"))})
        _copies[recipe] = loaded if recipe.twin is None else random_twin(loaded, recipe.twin)
        while len(_copies) > _KEPT:
            _copies.popitem(last=False)
    _copies.move_to_end(recipe)
    found = _copies[recipe]
    if found.fingerprint != fingerprint:
        raise InputError(f"{recipe.source} is another model in another process: give every process the same files", "model")
    return found
