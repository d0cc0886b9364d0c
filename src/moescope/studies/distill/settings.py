"""The options of a distillation study, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moescope.errors import InputError
from moescope.studies.distill.controls import CONTROLS
from moescope.studies.distill.spec import RouterKind, Start, StudentSpec


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How a layer is distilled. The defaults are the published protocol, at a size that suits a laptop.

    Attributes:
        layer: which layer's MLP.
        experts: experts of each MoE student (published: 10,000 and 100,000).
        active: experts that run for a token, one student each; a shared MLP of as many neurons runs beside them, so that
            active neurons are twice this, and the dense student has as many.
        routers: one MoE student each.
        rank: of low-rank routers and product-key queries.
        width: neurons of one expert.
        expert_activation: ``"model"`` or ``"linear"``.
        transcoders: also train an ungated top-k transcoder and a skip transcoder of the same dictionary and active features.
        equal_cost: also train the dense student whose multiply-adds equal those of each MoE student, router included (at
            most as wide as the teacher).
        controls: see :data:`CONTROLS`; "twin" is the same layer of the randomly initialised model.
        start: of every student, dense ones too, so that their ratio compares structures and not starts.
        lrs: tried at the first seed; the best on validation is used for every seed and reported on test.
        seeds: of the students' start and the order of the data; at least 3 for intervals.
        steps: updates; None: ``epochs`` passes (published: 100).
        tokens: vectors read from the text; None: all of it.
        memory: GiB of vectors that are kept; more are read from the model again in every epoch.
    """

    layer: int
    experts: int = 10_000
    active: tuple[int, ...] = (4, 16, 64)
    routers: tuple[RouterKind, ...] = ("low-rank",)
    rank: int = 64
    width: int = 1
    expert_activation: Literal["model", "linear"] = "model"
    beta: float = 1.0
    start: Start = "random"
    transcoders: bool = False
    equal_cost: bool = True
    controls: tuple[str, ...] = ("gaussian",)
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: int = 3
    steps: int | None = None
    epochs: int = 20
    batch: int = 1024
    precision: Literal["fp32", "bf16"] = "fp32"
    revive: bool = False
    tokens: int | None = None
    memory: float = 2.0
    buffer: int = 65536
    batch_tokens: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.active:
            raise InputError("--active: give at least one number of active experts")
        if self.seeds < 1:
            raise InputError(f"--seeds: {self.seeds}; give at least 1 (3 for intervals)")
        if not self.lrs or not all(lr > 0 for lr in self.lrs):
            raise InputError(f"--lr: learning rates must be positive, got {self.lrs}")
        if not self.memory > 0:
            raise InputError(f"--memory: {self.memory} GiB; give a positive number")
        if not self.routers:
            raise InputError("--router: give at least one router")
        for name in self.controls:
            if name not in CONTROLS and name != "twin":
                raise InputError(f"--control: {name!r} is none of {', '.join([*CONTROLS, 'twin'])}")
        self.students()

    def students(self) -> dict[str, StudentSpec]:
        """Every student but those of equal cost, whose size is known only when the layer is."""
        specs = []
        for k in self.active:
            specs.append(StudentSpec(kind="dense", shared=2 * k * self.width, start=self.start))
            specs += [
                StudentSpec(
                    shared=k * self.width,
                    experts=self.experts,
                    active=k,
                    width=self.width,
                    activation=self.expert_activation,
                    router=router,
                    rank=self.rank,
                    beta=self.beta,
                    start=self.start,
                )
                for router in self.routers
            ]
            if self.transcoders:
                for kind in ("transcoder", "skip-transcoder"):
                    specs.append(StudentSpec(kind=kind, experts=self.experts, active=2 * k, start=self.start))
        return {spec.name: spec for spec in specs}
