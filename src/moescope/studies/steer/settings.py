"""What is done to a model, in plain words, and how its effect is measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from moescope.errors import InputError
from moescope.study.settings import Judged, NonEmpty, at_least

Match = Literal["overall", "target"]
AblateMode = Literal["mean", "zero"]
Engine = Literal["transformers", "vllm", "sglang", "llama.cpp"]
_EXPERT = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")
_MEMBER, _VALUE = "LAYER:EXPERT, e.g. 5:17", "LAYER:EXPERT=NUMBER, e.g. 5:17=+2.0"


@dataclass(frozen=True, kw_only=True)
class SteerSettings(Judged):
    """The edits, each as text, and beside how many random ones of the same kind they are measured.

    In Python an expert may also be a pair (layer, number); it is kept as text.
    """

    ban: tuple[str, ...] = ()
    """LAYER:EXPERT, e.g. 5:17; never chosen."""
    force: tuple[str, ...] = ()
    """LAYER:EXPERT; always chosen."""
    boost: tuple[str, ...] = ()
    """LAYER:EXPERT=NUMBER, added to the router's logit."""
    scale: tuple[str, ...] = ()
    """LAYER:EXPERT=FACTOR on the expert's output weight."""
    ban_top: tuple[str, ...] = ()
    """CATEGORY or CATEGORY=N: ban the N (2) experts of each layer that the category uses beyond the others; "each" does so
    for every category."""
    like: tuple[str, ...] = ()
    """CATEGORY or CATEGORY=STRENGTH: boost all experts so that any text routes like the category."""
    like_text: str | None = None
    """Boost all experts so that any text routes like this one."""
    unseen: tuple[str, ...] = ()
    """CATEGORY or CATEGORY=N: as if its task had never been seen, boost all experts so that any text routes like N (8)
    prompts of it; beside the same boosts made from N prompts of each other category."""
    ablate: str | None = None
    """Circuit to switch off: a circuits result, or JSON with a list of neurons."""
    mode: AblateMode = "mean"
    """What ablated neurons are set to."""
    target: str | None = None
    """Category that the edits by hand are about."""
    export: Engine | None = None
    """Also write the edits as a checkpoint that this engine loads, in the result's folder."""
    match: Annotated[tuple[Match, ...], NonEmpty()] = ("overall", "target")
    """On which usage random experts are matched: over all categories alike, or, where there is a target, also on the usage
    in it (the harder control: an expert that the category uses more is missed more for that alone)."""
    n_random: Annotated[int, at_least(1)] = 199
    """Matched random sets of experts or neurons."""
    text_tokens: Annotated[int | None, at_least(2)] = None
    """Of each category's text; the cost is tokens x categories x random sets. Default: 1536, and fewer, down to 256, of a model
    with so many weights that a steering would take a processor hours."""
    length: Annotated[int, at_least(8)] = 64
    """Tokens of one text that count; short pieces of many documents give narrower intervals than long ones of few."""
    new_tokens: Annotated[int, at_least(0)] = 40
    """Of the sample before and after, one for each category of the prompts; 0 for none."""
    margin: Annotated[float, at_least(0)] = 0.02
    """Smallest difference in loss that counts, nats a token."""

    def __post_init__(self) -> None:
        for name in ("ban", "force"):
            members = getattr(self, name)
            if not isinstance(members, str):  # which is refused below: no list
                object.__setattr__(self, name, tuple(m if isinstance(m, str) else ":".join(map(str, m)) for m in members))
        super().__post_init__()

    def check(self) -> None:
        for name in ("ban", "force"):
            self.experts(name)
        for name in ("boost", "scale"):
            self.values(name)
        for name, default in (("ban_top", 2), ("like", 1.0)):
            self.amounts(name, default)
        asked = self.unseen_prompts
        for category, n in asked:
            if n < 1:
                raise InputError(f"{n} prompts make no boost; give at least 1", "unseen")
            if asked.count((category, n)) > 1:
                raise InputError(f"{category}={n} is given twice; give it once", "unseen")

    @property
    def unseen_prompts(self) -> list[tuple[str, int]]:
        """``unseen`` as pairs of a category and how many prompts of it."""
        return [(category, int(n)) for category, n in self.amounts("unseen", 8)]

    def experts(self, name: str) -> frozenset[tuple[int, int]]:
        """``ban`` or ``force`` as pairs (layer, number).

        Raises:
            InputError: naming what is not LAYER:EXPERT.
        """
        return frozenset(_expert(name, text, _MEMBER) for text in getattr(self, name))

    def values(self, name: str) -> dict[tuple[int, int], float]:
        """``boost`` or ``scale`` as number by (layer, number); ``inf`` and ``-inf`` are numbers too.

        Raises:
            InputError: naming what is not LAYER:EXPERT=NUMBER, or stands twice.
        """
        values: dict[tuple[int, int], float] = {}
        for text in getattr(self, name):
            member, _, number = text.partition("=")
            expert = _expert(name, member, _VALUE)
            if expert in values:
                raise InputError(f"expert {member.strip()} is given twice; give it once", name)
            values[expert] = _number(name, number, f"{text!r} is not {_VALUE}")
        return values

    def amounts(self, name: str, default: float) -> list[tuple[str, float]]:
        """``ban_top``, ``like`` or ``unseen`` as pairs of a category and how many, or how much.

        Raises:
            InputError: naming what is no number.
        """
        found = []
        for text in getattr(self, name):
            category, equals, number = text.partition("=")
            kind: Callable[[str], float] = int if isinstance(default, int) else float
            found.append(
                (category, _number(name, number, f"{text!r}: {number!r} is not a number", kind) if equals else default)
            )
        return found


def _expert(name: str, text: str, form: str) -> tuple[int, int]:
    found = _EXPERT.fullmatch(text)
    if not found:
        raise InputError(f"{text!r} is not {form}", name)
    return int(found[1]), int(found[2])


def _number(name: str, text: str, otherwise: str, kind: Callable[[Any], float] = float) -> float:
    try:
        return kind(text)
    except ValueError:
        raise InputError(otherwise, name) from None
