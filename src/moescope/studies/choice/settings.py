"""How a choice of neurons is read, and against what it is tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moescope.study.settings import Judged, above, at_least, between
from moescope.study.verdicts import check_draws

TOGETHER = ("pairs", "groups")
"""The claims on what is chosen together, which are judged together (Holm)."""


@dataclass(frozen=True, kw_only=True)
class ChoiceSettings(Judged):
    """How a choice of neurons is read, and against what it is tested."""

    neuron_share: Annotated[float | None, between(0, 1)] = None
    """Share of a layer's neurons that 4 of 8 bits of gate and up choose for a token, in a dense model; one that
    `moescope sparsify` wrote is read by its own choice, without this."""
    k: Annotated[int, at_least(1)] = 50
    """Neurons of a task's circuit, and as many whose choice differs most between its classes."""
    tokens: Annotated[int, at_least(64)] = 512
    """Tokens of each half of the texts on which it is seen what is chosen together."""
    neurons: Annotated[int, at_least(32)] = 512
    """Neurons of a layer whose pairs are looked at, drawn at random where there are more."""
    groups: Annotated[int, at_least(2)] = 16
    """Groups into which they are put."""
    n_draws: int = 99
    """Choices dealt out anew, which keep every neuron's and every token's number; and as many among equal tokens."""
    n_random: int = 999
    """Random sets of neurons of the same layers, and of those that are chosen as often, beside a task's circuit."""
    n_permutations: int = 99
    """Permuted labels under which it is seen anew in which neurons' choice the classes differ."""
    margin: Annotated[float, between(0, 0.5)] = 0.1
    """Smallest overlap of circuit and choice that counts, as a share of what each shares with itself on other texts."""
    margin_together: Annotated[float, above(0)] = 0.02
    """Smallest correlation that counts."""

    def check(self) -> None:
        check_draws(self.n_draws, len(TOGETHER), "n_draws", self.alpha, sides=2)
        for name in ("n_random", "n_permutations"):
            check_draws(getattr(self, name), 1, name, self.alpha, sides=2)
