"""The vocabulary of moescope on one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SiteKind = Literal["embed", "resid", "attn_out", "mlp_in", "mlp_act", "mlp_out", "router"]
SITE_KINDS: tuple[SiteKind, ...] = ("embed", "resid", "attn_out", "mlp_in", "mlp_act", "mlp_out", "router")


@dataclass(frozen=True, order=True)
class Site:
    """A named place in a transformer where a vector per token can be read or replaced.

    ``embed`` is what enters layer 0 (layer is 0); ``resid`` the residual stream after layer ``layer``, before any final
    norm; ``attn_out`` and ``mlp_out`` what the attention and MLP modules return; ``mlp_in`` the (post-norm) tensor that the
    MLP receives; ``mlp_act`` the hidden activation that the MLP's down projection receives; ``router`` a mixture-of-experts
    layer's router scores.
    """

    kind: SiteKind
    layer: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.layer}"


@dataclass(frozen=True, order=True)
class Neuron:
    """One coordinate of a site. In the residual stream it is a coordinate, not a unit with a nonlinearity."""

    site: Site
    index: int

    def __str__(self) -> str:
        return f"{self.site}/{self.index}"


@dataclass(frozen=True)
class Example:
    """One text with its class, its group (rows of one group never straddle a split) and, if known, its language."""

    text: str
    label: int
    group: str
    language: str | None = None


@dataclass(frozen=True)
class Task:
    """A labelled set of texts.

    ``classes`` names the labels 0..C-1. ``answers`` gives, for each class, the words by which a model itself would answer
    when the text ends in a question (``" positive"``); empty where the task has none.
    """

    name: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    source: str
    licence: str | None = None
    answers: tuple[str, ...] = ()
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Circuit:
    """The K neurons that a task was found to live in, best first."""

    task: str
    neurons: tuple[Neuron, ...]
    divergence: tuple[float, ...]
    sigma: str = "pooled"


Verdict = Literal["reproduced", "not reproduced", "explained by chance", "explained by a trivial cue", "identity", "measured"]


@dataclass(frozen=True)
class Claim:
    """One statement of a study beside what was measured here.

    ``published`` and ``null`` are None where the source gives none, or no null applies. ``interval`` is 95 % unless
    ``note`` says otherwise. ``verdict`` is one of :data:`Verdict`; ``note`` says in words why.
    """

    name: str
    measured: float | str
    published: float | str | None = None
    interval: tuple[float, float] | None = None
    null: float | str | None = None
    p: float | None = None
    verdict: Verdict = "measured"
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
