"""How an early exit is fitted, calibrated and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from moescope.errors import InputError
from moescope.runtime.exit.heads import KINDS, Kind
from moescope.runtime.exit.rule import Loss

Method = Literal["ltt", "crc"]
"""``ltt``: Learn-then-Test, risk within bounds with probability 1 - delta; ``crc``: conformal risk control, on average."""


@dataclass(frozen=True, kw_only=True)
class ExitSettings:
    """Raises InputError on a value out of range."""

    risk: float = 0.02
    delta: float = 0.1
    loss: Loss = "accuracy"
    method: Method = "ltt"
    head: Kind | Literal["auto"] = "auto"
    k: int = 10
    """neurons of a circuit head"""
    layers: tuple[int, ...] | None = None
    """layers after which a row may leave (the last always); None: after every layer"""
    max_tokens: int | None = None
    batch_tokens: int = 8192
    timed_texts: int = 64
    """test texts that go on the clock, at most"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("risk", self.risk), ("delta", self.delta)):
            if not 0 < value < 1:
                raise InputError(f"--{name}: {value:g} is not between 0 and 1")
        for name, chosen, known in (
            ("loss", self.loss, get_args(Loss)),
            ("method", self.method, get_args(Method)),
            ("head", self.head, (*KINDS, "auto")),
        ):
            if chosen not in known:
                raise InputError(f"--{name}: {chosen!r} is none of {', '.join(known)}")
        if self.k < 1:
            raise InputError(f"--k: {self.k} is not a positive number of neurons")
        if self.timed_texts < 1:
            raise InputError(f"--timed-texts: {self.timed_texts} is not a positive number of texts")
