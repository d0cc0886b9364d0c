"""What a model carries where its reading is shared out over processes: the engine, and how another process gets the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moescope.cluster import LOCAL, Engine
from moescope.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How to make a model again: what :func:`moescope.models.load` was given; and the seed, of the random twin of that."""

    source: str
    options: tuple[tuple[str, Any], ...]
    twin: int | None = None


@dataclass
class Spread:
    """Of one model."""

    engine: Engine
    recipe: Recipe
    counters: list[Callable[[float], None]] = field(default_factory=list, compare=False)
    """told how many forward tokens another process ran"""

    @classmethod
    def of(cls, engine: Engine, source: Any, options: Mapping[str, Any]) -> Spread | None:
        """Of the model that was loaded from ``source`` with ``options``; None for a single process.

        Raises:
            InputError: the model was given in memory.
        """
        if engine is LOCAL:
            return None
        if not isinstance(source, str | Path):
            raise InputError("is in memory, where other processes cannot load it from; give its folder or id", "model")
        # another process may stand in another folder
        place = Path(source).expanduser()
        return cls(engine, Recipe(str(place.absolute() if place.exists() else source), tuple(sorted(options.items()))))

    def twin(self, seed: int) -> Spread:
        """Of the random twin."""
        return Spread(self.engine, replace(self.recipe, twin=seed))
