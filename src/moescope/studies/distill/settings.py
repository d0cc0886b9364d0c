"""How a layer is distilled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from moescope.errors import InputError
from moescope.studies.distill.spec import RouterKind, Start, StudentSpec
from moescope.study.settings import Judged, NonEmpty, above, at_least, between
from moescope.study.verdicts import check_draws

NO_PADDING = "no-padding"
EXPERT_CLAIMS = 2  # of a student's experts, judged together, beside one for each circuit
Control = Literal[
    "gaussian",
    "kurtosis",
    "mixture",
    "shuffled-teacher",
    "shuffled-outputs",
    "twin",
    "no-padding",
    "no-padding-gaussian",
]


@dataclass(frozen=True, kw_only=True)
class DistillSettings(Judged):
    """Which students are trained, on what, for how long. The defaults are the published protocol, at a size for a laptop."""

    layer: Annotated[int | None, at_least(0)] = None
    """Whose MLP to distil (default: the middle one)."""
    module: str | None = None
    """Distil this module of the model instead, by its name in the body: encoder.layer.3.mlp."""
    experts: Annotated[int, at_least(1)] = 10_000
    """Experts of each mixture-of-experts student (published: 10,000 and 100,000)."""
    active: Annotated[tuple[int, ...], NonEmpty(), at_least(1)] = (16,)
    """Experts that run for a token, a student for each. As many neurons are shared; a dense student has as many."""
    router: Annotated[tuple[RouterKind, ...], NonEmpty()] = ("low-rank",)
    """full, low-rank, product-key: a mixture-of-experts student for each."""
    rank: Annotated[int, at_least(1)] = 64
    """Of low-rank routers and product-key queries."""
    expert_width: Annotated[int, at_least(1)] = 1
    """Neurons of one expert."""
    expert_activation: Literal["model", "linear"] = "model"
    """Of the experts' neurons."""
    beta: Annotated[float, above(0)] = 1.0
    """Inverse temperature of the gates' softmax."""
    start: Start = "random"
    """Of every student, dense ones too: random as published, or the teacher's own neurons."""
    transcoders: bool = False
    """Also train an ungated top-k transcoder and a skip transcoder of the same dictionary and active features."""
    equal_cost: bool = True
    """Also train dense students of the same multiply-adds, router included (at most as wide as the layer)."""
    control: tuple[Control, ...] = ("gaussian",)
    """gaussian, kurtosis, mixture, shuffled-teacher, shuffled-outputs, twin (the layer of the random model), no-padding
    (the same lines without padding and first tokens, where padding is kept), no-padding-gaussian; or none."""
    lr: Annotated[tuple[float, ...], NonEmpty(), above(0)] = (1e-3, 3e-3, 1e-2)
    """Learning rates, of which the first seed's validation chooses one for every seed."""
    seeds: Annotated[int, at_least(1)] = 3
    """Seeds of every student's start and of the order of the data (no verdict with fewer than 3)."""
    margin_ratio: Annotated[float, above(1)] = 1.05
    """Smallest ratio of two students' errors, or lift of a category, that counts."""
    margin: Annotated[float, between(0, 1)] = 0.03
    """Smallest difference of shares and of cosines that counts."""
    n_permutations: Annotated[int, at_least(1)] = 999
    """Shuffles of the documents' categories, and of the experts' write directions."""
    steps: Annotated[int | None, at_least(1)] = None
    """Updates (default: as many passes over the data as epochs says)."""
    epochs: Annotated[int, at_least(1)] = 20
    """Passes over the training split (published: 100)."""
    batch: Annotated[int, at_least(1)] = 1024
    """Vectors in a step."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the students' dense products and router scores (tf32: on a GPU); weights and updates stay float32."""
    revive: bool = False
    """Give dead experts a new start (not in the published protocol)."""
    padding: Literal["drop", "keep"] = "drop"
    """keep: lines read eight at a time, padded to the longest, and every position kept, as the source's loader does."""
    tokens: Annotated[int | None, at_least(1)] = None
    """Vectors to read (default: all of the text)."""
    memory: Annotated[float, above(0)] = 2.0
    """GiB of vectors to keep; more are read again in every epoch."""
    buffer: Annotated[int, at_least(1)] = 65536
    """Vectors held at once where they are read again."""

    def check(self) -> None:
        self.students()
        unpadded = [name for name in self.control if name.startswith(NO_PADDING)]
        if unpadded and self.padding == "drop":
            raise InputError(f"{unpadded[0]} is a control of padding that is kept; set padding to keep", "control")
        check_draws(self.n_permutations, EXPERT_CLAIMS, "n_permutations", self.alpha)

    def students(self) -> dict[str, StudentSpec]:
        """Every student but those of equal cost, whose size is known only when the layer is."""
        specs = []
        for k in self.active:
            specs.append(StudentSpec(kind="dense", shared=2 * k * self.expert_width, start=self.start))
            specs += [
                StudentSpec(
                    shared=k * self.expert_width,
                    experts=self.experts,
                    active=k,
                    width=self.expert_width,
                    activation=self.expert_activation,
                    router=router,
                    rank=self.rank,
                    beta=self.beta,
                    start=self.start,
                )
                for router in self.router
            ]
            if self.transcoders:
                for kind in ("transcoder", "skip-transcoder"):
                    specs.append(StudentSpec(kind=kind, experts=self.experts, active=2 * k, start=self.start))
        return {spec.name: spec for spec in specs}
