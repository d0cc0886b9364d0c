"""What a student looks like, in one small record."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from moescope.errors import InputError

Kind = Literal["dense", "moe", "transcoder", "skip-transcoder"]
RouterKind = Literal["full", "low-rank", "product-key"]
Start = Literal["random", "teacher"]
KINDS = ("dense", "moe", "transcoder", "skip-transcoder")
ROUTERS = ("full", "low-rank", "product-key")
STARTS = ("random", "teacher")


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
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
        InputError: fields that contradict each other; the message names the option.
    """

    kind: Kind = "moe"
    shared: int = 0
    experts: int = 0
    active: int = 0
    width: int = 1
    activation: Literal["model", "linear"] = "model"
    router: RouterKind = "low-rank"
    rank: int = 128
    beta: float = 1.0
    start: Start = "random"

    def __post_init__(self) -> None:
        for option, value, known in (
            ("kind", self.kind, KINDS),
            ("router", self.router, ROUTERS),
            ("start", self.start, STARTS),
        ):
            if value not in known:
                raise InputError(f"--{option}: {value!r} is none of {', '.join(known)}")
        if self.activation not in ("model", "linear"):
            raise InputError(f"--expert-activation: {self.activation!r} is neither model nor linear")
        if self.shared < 0:
            raise InputError(f"--shared: {self.shared} neurons; give 0 or more")
        if self.kind == "dense":
            if self.shared < 1:
                raise InputError("--shared: a dense student needs at least 1 neuron")
            if self.experts or self.active:
                raise InputError("--experts and --active: a dense student has none; leave them out or choose another kind")
            return
        if self.experts < 1:
            raise InputError(f"--experts: {self.experts} experts; give at least 1")
        if not 1 <= self.active <= self.experts:
            raise InputError(f"--active: {self.active} of {self.experts} experts cannot be active; give 1 to {self.experts}")
        if self.width < 1:
            raise InputError(f"--expert-width: {self.width} neurons; give at least 1")
        if self.kind != "moe" and (self.shared or self.width != 1):
            raise InputError(f"--kind {self.kind}: it has no shared neurons and features of width 1; leave both out")
        if self.kind == "moe" and self.router != "full" and self.rank < 1:
            raise InputError(f"--rank: {self.rank}; give at least 1")
        if self.kind == "moe" and self.router == "product-key":
            if self.rank % 2:
                raise InputError(f"--rank: {self.rank}; a product-key query has two halves, give an even rank")
            key_grid(self.experts)
        if not self.beta > 0:
            raise InputError(f"--beta: {self.beta}; give a positive number")

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
            f"--experts: {experts} has no two factors of similar size, which product keys need; take {root * root} instead"
        )
    return low, experts // low
