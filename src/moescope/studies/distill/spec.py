"""What a student looks like, in one small record."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from moescope.errors import InputError
from moescope.study.settings import Settings, above, at_least

Kind = Literal["dense", "moe", "transcoder", "skip-transcoder"]
RouterKind = Literal["full", "low-rank", "product-key"]
Start = Literal["random", "teacher"]


@dataclass(frozen=True, kw_only=True)
class StudentSpec(Settings):
    """A student of an MLP layer.

    Attributes:
        kind: ``"dense"``: an MLP of ``shared`` neurons. ``"moe"``: the same beside the best ``active`` of ``experts``
            experts, gated by a softmax over the chosen router scores ("Secret mixtures of experts inside your LLM", arXiv
            2512.18452). ``"transcoder"``: the ``active`` largest of ``experts`` pre-activations pass, ungated (Dunefsky et
            al. 2024, with the top-k of Gao et al. 2024); ``"skip-transcoder"`` adds a linear map from the input (Paulo et
            al. 2025).
        shared: neurons that always run.
        experts: how many experts there are; for a transcoder its dictionary.
        active: how many of them run for a token.
        width: neurons of one expert.
        activation: of the experts: ``"model"`` takes the teacher's own, gate included where it has one; ``"linear"`` none.
        router: how experts are chosen: scores of every expert from the whole input, from a projection of rank ``rank``, or
            from the sum of two halves' scores, so that √experts scores are computed twice (Lample et al. 2019).
        rank: of the low-rank projection, or of the product-key query.
        beta: inverse temperature of the gates' softmax.
        start: ``"random"`` as published, or ``"teacher"``: the teacher's own neurons, and a router at the inputs that
            drive them.

    Raises:
        InputError: a value out of bounds, or fields that contradict each other.
    """

    kind: Kind = "moe"
    shared: Annotated[int, at_least(0)] = 0
    experts: Annotated[int, at_least(0)] = 0
    active: Annotated[int, at_least(0)] = 0
    width: Annotated[int, at_least(1)] = 1
    activation: Literal["model", "linear"] = "model"
    router: RouterKind = "low-rank"
    rank: Annotated[int, at_least(1)] = 128
    beta: Annotated[float, above(0)] = 1.0
    start: Start = "random"

    def check(self) -> None:
        if self.kind == "dense":
            if self.shared < 1:
                raise InputError("a dense student needs at least 1 neuron", "shared")
            if self.experts or self.active:
                raise InputError("a dense student has none, nor active ones; leave both out or choose another kind", "experts")
            return
        if self.experts < 1:
            raise InputError(f"{self.experts} experts; give at least 1", "experts")
        if not 1 <= self.active <= self.experts:
            raise InputError(f"{self.active} of {self.experts} experts cannot be active; give 1 to {self.experts}", "active")
        if self.kind != "moe" and (self.shared or self.width != 1):
            raise InputError(f"a {self.kind} has no shared neurons and features of width 1; leave both out", "kind")
        if self.kind == "moe" and self.router == "product-key":
            if self.rank % 2:
                raise InputError(f"{self.rank}: a product-key query has two halves, give an even rank", "rank")
            key_grid(self.experts)

    @property
    def active_neurons(self) -> int:
        """Neurons that run for one token: the published axis. Router and skip are not in it: see ``accounting``."""
        return self.shared + self.active * self.width

    @property
    def name(self) -> str:
        """Short and distinct within a study: ``dense 32``, ``moe 16+16 of 10000 (low-rank 128)``."""
        begun = "" if self.start == "random" else ", start teacher"
        if self.kind == "dense":
            return f"dense {self.shared}{begun}"
        if self.kind != "moe":
            return f"{self.kind} {self.active} of {self.experts}{begun}"
        head = f"moe {self.shared}+{self.active} of {self.experts}"
        router = self.router if self.router == "full" else f"{self.router} {self.rank}"
        changed = [
            f"{field.name} {getattr(self, field.name)}"
            for field in fields(self)
            if field.name in ("width", "activation", "beta", "start") and getattr(self, field.name) != field.default
        ]
        return f"{head} ({', '.join([router, *changed])})"

    def json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def key_grid(experts: int) -> tuple[int, int]:
    """The two key counts of a product-key router: their product is ``experts``, and they are as equal as can be.

    Raises:
        InputError: the nearest factors are so unequal that the router would not be sub-linear.
    """
    low = next(n for n in range(int(experts**0.5), 0, -1) if experts % n == 0)
    if low * 8 < experts // low:
        root = round(experts**0.5)
        raise InputError(
            f"{experts} has no two factors of similar size, which product keys need; take {root * root} instead", "experts"
        )
    return low, experts // low
