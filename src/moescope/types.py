"""The vocabulary of moescope on one page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

SiteKind = Literal["embed", "resid", "attn_out", "mlp_in", "mlp_act", "mlp_out", "router"]
SITE_KINDS: tuple[SiteKind, ...] = ("embed", "resid", "attn_out", "mlp_in", "mlp_act", "mlp_out", "router")
MODULE = "module:"
"""What the kind of a site begins with that is a module by its name: ``module:layers.*.mlp.act_fn``, ``*`` for the layer."""
_MODULE = re.compile(re.escape(MODULE) + r"[\w.*-]{1,256}")
LabelKind = Literal["classes", "graded", "tokens", "answers"]
"""What a task's labels are: a class of each text, a number of each text, a class of each of the words that are labelled, or
whether a model answers a question rightly, which is known when it has answered."""
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8", "int4"]
"""Of a model's weights; ``auto`` is the checkpoint's own, see :func:`moescope.models.load`."""


def is_kind(text: object) -> bool:
    """Whether a site can be of this kind: one that has a name, or a module by its own."""
    return isinstance(text, str) and (text in SITE_KINDS or _MODULE.fullmatch(text) is not None)


@dataclass(frozen=True, order=True)
class Site:
    """A named place in a transformer where a vector per token can be read or replaced.

    ``embed`` is what enters layer 0 (layer is 0); ``resid`` the residual stream after layer ``layer``, before any final
    norm; ``attn_out`` and ``mlp_out`` what the attention and MLP modules return; ``mlp_in`` the (post-norm) tensor that the
    MLP receives; ``mlp_act`` the hidden activation that the MLP's down projection receives; ``router`` a mixture-of-experts
    layer's router scores. Any other module is one by its name: ``module:layers.*.mlp.act_fn`` is what that module returns,
    ``*`` standing for the number of the layer.
    """

    kind: SiteKind | str
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
    """One text with its class, its group (rows of one group never straddle a split) and, if known, its language.

    ``value`` is the label where that is graded (``label`` is then 0); ``span`` where the labelled word stands in ``text``, from
    its first character to before the one after its last, where the words have the labels.
    """

    text: str
    label: int
    group: str
    language: str | None = None
    value: float | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Task:
    """A labelled set of texts, or of words in texts.

    ``classes`` names the labels 0..C-1; a graded task has none. ``answers`` gives, for each class, the words by which a
    model itself would answer when the text ends in a question (``" positive"``); empty where the task has none.
    """

    name: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    source: str
    licence: str | None = None
    answers: tuple[str, ...] = ()
    sha256: str = ""
    kind: LabelKind = "classes"

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Circuit:
    """The K neurons that a task was found to live in, best first."""

    task: str
    neurons: tuple[Neuron, ...]
    divergence: tuple[float, ...]
    sigma: str = "pooled"


Outcome = Literal[
    "reproduced", "holds", "weaker", "contradicted", "inconclusive", "undertrained", "identity", "descriptive", "not tested"
]
"""What the evidence says of a claim; how it is decided stands in :mod:`moescope.study.verdicts`.

``reproduced`` and ``weaker`` are for the model, data and protocol of the source alone; ``holds`` and ``contradicted`` for what
was tested here; ``inconclusive`` where neither the effect nor its absence could be shown; ``undertrained`` where a gate failed;
``identity`` is true by construction; ``descriptive`` tests no hypothesis; ``not tested`` lacks what it needs, by name.
"""
Explanation = Literal["chance", "trivial cue", "leakage", "none found"]
"""What explains that which holds, or which was published. None beside it: no explanation was tested."""


@dataclass(frozen=True)
class Published:
    """What a source gives. ``half_width`` is half of its 95 % interval, None where it gives none."""

    value: float | str
    source: str
    half_width: float | None = None


@dataclass(frozen=True)
class Control:
    """What stands beside a figure: a null (what chance gives) or a rival, by name, with its own figure."""

    name: str
    value: float | str


@dataclass(frozen=True)
class Claim:
    """One statement of a study beside what was measured here.

    ``id`` is that of the statement in the studies (``"H2"``; docs/claims.md), empty for one that they do not make.
    ``published`` and ``control`` are None where the source gives no value, or nothing stands beside it. ``interval`` is 95 %
    unless ``words`` says otherwise; without one ``words`` says why. ``p_adjusted`` is ``p`` after Holm within ``family``.
    """

    statement: str
    measured: float | str
    id: str = ""
    published: Published | None = None
    interval: tuple[float, float] | None = None
    control: Control | None = None
    p: float | None = None
    p_adjusted: float | None = None
    family: str = ""
    outcome: Outcome = "descriptive"
    explanation: Explanation | None = None
    words: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome not in get_args(Outcome) or self.explanation not in (None, *get_args(Explanation)):
            raise ValueError(f"no verdict: outcome {self.outcome!r}, explanation {self.explanation!r}")

    @property
    def verdict(self) -> str:
        """Outcome and explanation as a reader sees them: ``"holds here, explained by a trivial cue"``."""
        words = {"holds": "holds here", "contradicted": "does not hold here"}.get(self.outcome, self.outcome)
        match self.explanation:
            case None | "none found":
                return words
            case "trivial cue":
                return f"{words}, explained by a trivial cue"
            case _:
                return f"{words}, explained by {self.explanation}"
