"""The options of the circuits study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.study.settings import Judged, NonEmpty, Sites, above, at_least, between
from moescope.study.verdicts import check_draws

Sigma = Literal["pooled", "total", "negative"]
PRIMARY = ("handful", "same layers", "two suffice", "unit", "done early")
"""The claims of one task that are judged together (Holm)."""
INTERVENTIONS = ("harm", "specificity", "one direction")
"""The claims about one task's ablation that are judged together (Holm)."""
BY_SIZE = ("accuracy", "depth", "self_overlap")
"""What may change with size: the claims of one task that are judged together (Holm)."""
SUFFICIENCY = ("handful", "share", "attribution")
"""The claims about one task's circuit kept alone that are judged together (Holm)."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Judged):
    """How a circuit is sought and read."""

    site: Annotated[str, Sites()] = "resid"
    """resid (the residual stream after every layer, as published), mlp_act, mlp_out, attn_out or mlp_in; with layers as
    resid:3 or resid:0-5; or any module by its name, as module:layers.*.mlp.act_fn."""
    position: Literal["final", "cls", "mean"] | int = "final"
    """final (as published), cls (an encoder's class token), mean, or a token index such as -2."""
    k: Annotated[int, at_least(1)] = 10
    """Circuit size that the controls use."""
    sigma: Sigma = "pooled"
    """Denominator of the divergence, which the source leaves open; total reproduces its bound of 2."""
    selection: Literal["nested", "global"] = "nested"
    """nested selects inside the training folds; global is the published protocol, optimistic."""
    classifier: Literal["lda", "logistic"] = "lda"
    """What reads the circuit; lda as published."""
    n_folds: Annotated[int, at_least(3)] = 5
    """Cross-validation folds."""
    margin: Annotated[float, between(0, 0.5)] = 0.03
    """Smallest difference between two shares (balanced accuracies, shares of variance or of depth) that counts."""


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(SearchSettings):
    """How a circuit is sought and read in models of several sizes."""

    margin: Annotated[float, between(0, 0.5)] = 0.03
    """Smallest change of a share (balanced accuracy, depth, overlap) for a tenfold of parameters that counts."""
    twin: bool = True
    """Also study a randomly initialised model of each architecture: what size alone gives."""


@dataclass(frozen=True, kw_only=True)
class CircuitSettings(SearchSettings):
    """How task circuits are sought, and against what they are tested."""

    ks: Annotated[tuple[int, ...], at_least(1), NonEmpty()] = (1, 2, 3, 5, 10, 20, 50)
    """Circuit sizes of the sufficiency table."""
    margin: Annotated[float, between(0, 0.5)] = 0.03
    """Smallest difference between two shares (balanced accuracies, shares of variance or of depth) that counts."""
    n_permutations: Annotated[int, at_least(19)] = 1000
    """Label permutations of the neuron ranking (max statistic) and of the projection."""
    n_label_permutations: Annotated[int, at_least(0)] = 100
    """Label permutations of the whole nested selection and cross-validation; 0 leaves them out."""
    n_rotations: Annotated[int, at_least(20)] = 20
    """Random bases in which the circuit is sought anew."""
    n_random: Annotated[int, at_least(20)] = 100
    """Random circuits per control."""
    twin: bool = True
    """Also study a randomly initialised model of the same architecture."""
    control_half_width: Annotated[float, between(0, 0.5, open_low=False)] = 0.05
    """Controls for which texts are read anew (twin, fixed template) get as many rows as an accuracy's 95 % interval of
    plus or minus this needs; 0: as many as control_cost pays for."""
    control_cost: Annotated[float, above(0)] = 0.5
    """And no more than cost together this share of one pass over the texts, in forward tokens."""
    examples: Annotated[int, at_least(0)] = 3
    """Texts shown of each of the circuit's first neurons, and of what the circuit gets wrong; 0: the result holds none."""
    ablate: Literal["mean", "resample", "zero", "patch"] | None = None
    """Switch the circuits off inside the model, against matched random neurons, and erase the class direction."""
    ablate_ks: Annotated[tuple[int, ...], at_least(1)] = ()
    """Further circuit sizes that are switched off beside k; described with 19 random sets each, not judged."""
    ablate_random: Annotated[int, at_least(19)] = 999
    """Random sets, matched on layer and on the size of the change, beside the circuit of size k."""
    ablate_rows: Annotated[int, at_least(2)] = 150
    """Most texts of a task that judge an intervention, and most that judge it off task."""
    ablate_text_tokens: Annotated[int, at_least(16)] = 1024
    """Tokens of plain text on which an ablation's loss is described."""
    keep_only: Literal["mean", "resample"] | None = None
    """Replace everything but the circuit, by the mean or by another text's values: a curve over how many neurons are kept."""
    keep_random: Annotated[int, at_least(19)] = 199
    """Random orders of the same layers that are kept beside the circuit."""

    paths: Literal["mean", "patch"] | None = None
    """Change the circuit's neurons (to the mean, or to the other classes'), and follow that to the other tasks' neurons and
    along the circuit's columns, through the blocks alone."""
    path_random: Annotated[int, at_least(39)] = 99
    """Random pairs of senders and receivers of the same layers beside them."""

    few_shot: str | None = None
    """NAME=SOURCE: a further task, learnt from 8 to 256 labels on the neurons of the others' circuits, beside random neurons of
    their layers, the largest variance and a regularised probe of all."""
    few_shot_draws: Annotated[int, at_least(5)] = 20
    """How often its labelled texts are drawn anew."""

    crossed: str | None = None
    """FILE?labels=a,b: texts that carry two labels, each class with each (or tone-certainty, which is made here): is a circuit
    as good where the other property differs, and does editing one leave the other alone?"""
    crossed_random: Annotated[int, at_least(39)] = 199
    """Random sets, matched on layer and on the size of the change, beside either circuit that is edited."""

    def check(self) -> None:
        check_draws(self.n_permutations, 1, "n_permutations", self.alpha)
        if self.n_label_permutations:
            check_draws(self.n_label_permutations, len(PRIMARY), "n_label_permutations", self.alpha)
        if self.ablate is not None:
            check_draws(self.ablate_random, len(INTERVENTIONS), "ablate_random", self.alpha, sides=2)
        if self.keep_only is not None:
            check_draws(self.keep_random, len(SUFFICIENCY), "keep_random", self.alpha, sides=2)

    @property
    def intervenes(self) -> bool:
        """Whether the running model is changed."""
        return any(how is not None for how in (self.ablate, self.keep_only, self.paths))

    def all_ks(self) -> tuple[int, ...]:
        """Every circuit size that the study evaluates, ascending."""
        return tuple(sorted({*self.ks, self.k}))
