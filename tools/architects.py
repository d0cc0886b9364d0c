"""Writes the tables of `docs/architects.md`: published configurations, formulas, and the students of `benchmarks/budget.py`.

python tools/architects.py
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from moescope.studies.distill.accounting import spec_cost
from moescope.studies.distill.spec import RouterKind, StudentSpec
from moescope.studies.distill.students import LayerShape

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE, PAGE = ROOT / "docs" / "evidence", ROOT / "docs" / "architects.md"
DEVICES, BYTES = (8, 32), 2  # of a number that travels: 16 bits
WIDTH, NEURONS, ACTIVE = 4096, 65_536, 1024  # of the layer that is divided ever finer
EXPERT_WIDTHS = (512, 64, 16, 4, 1)
RISK, KEYS = 0.01, 256  # of naming a wrong expert (T10); rank of product-key queries
_PART = re.compile(r"(<!-- (\w+), written by tools/architects.py -->)\n.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One configuration of ``published-moe.toml``."""

    name: str
    source: str
    width: int
    experts: int
    active: int
    expert_width: int
    shared: int
    groups: int = 1
    reached: int = 1

    @property
    def router(self) -> float:
        """The router's share of the layer's multiply-adds: E d of E d + 3 d (k f + shared)."""
        return self.experts / (self.experts + 3 * (self.active * self.expert_width + self.shared))

    @property
    def running(self) -> float:
        """Share of the layer's neurons that run for a token."""
        ran = self.active * self.expert_width + self.shared
        return ran / (self.experts * self.expert_width + self.shared)

    def spread(self, devices: int) -> float | None:
        """Other devices that a token is sent to, in expectation, under a uniform router; None where experts do not divide.

        Experts lie on ``devices`` in equal parts, a token on one of them at random, and it is sent once to each device that
        holds an expert of it. Where a token's experts must lie in ``reached`` of ``groups``, groups are whole devices or
        devices whole groups.
        """
        if self.experts % devices:
            return None
        each, pool = self.experts // devices, self.experts * self.reached // self.groups
        held = devices * self.reached / self.groups  # devices among the groups that may be reached
        if held < 1:
            return None
        return held * (1 - comb(pool - each, self.active) / comb(pool, self.active)) * (devices - 1) / devices


def published() -> list[Published]:
    """Every configuration, in the order of the file."""
    return [Published(**one) for one in tomllib.loads((EVIDENCE / "published-moe.toml").read_text(encoding="utf-8"))["model"]]


def enough(experts: int, active: int) -> int:
    """The least rank, in steps of 8, that names ``active`` equal coefficients but for :data:`RISK` (docs/theory.md, T10)."""
    ranks = np.arange(8, 200_000, 8)
    wrong = (experts - active) * active * norm.cdf(-np.sqrt(ranks / 2 / active))
    return int(ranks[np.argmax(wrong <= RISK)])


def divided(width: int) -> Iterator[tuple[RouterKind, int, float]]:
    """Of the layer in experts of ``width`` neurons: each kind of router, its rank, and its share of the multiply-adds."""
    experts, active = NEURONS // width, ACTIVE // width
    shape = LayerShape(WIDTH, WIDTH, "silu", True)
    kinds: dict[RouterKind, int] = {"full": WIDTH, "low-rank": min(enough(experts, active), WIDTH), "product-key": KEYS}
    for router, rank in kinds.items():
        total, own, _ = spec_cost(StudentSpec(experts=experts, active=active, width=width, router=router, rank=rank), shape)
        yield router, rank, own / total


def page() -> str:
    """The page with its tables written anew; what stands around them is written by hand, without a figure."""
    tables = {"published": _published, "divided": _divided, "measured": _measured}
    return _PART.sub(lambda found: "\n".join([found[1], *tables[found[2]](), "<!-- end -->"]), PAGE.read_text(encoding="utf-8"))


def _published() -> Iterator[str]:
    sent = " | ".join(f"KB sent, P = {devices}" for devices in DEVICES)
    cut = " | ".join(f"KB, cut, P = {devices}" for devices in DEVICES)
    yield f"| model | d | E | k | f | always | router's share | neurons that run | {sent} | {cut} |"
    yield f"|{'---|' * (8 + 2 * len(DEVICES))}"
    for one in published():
        cells = [f"[{one.name}]({one.source})", f"{one.width:,}", str(one.experts), str(one.active), f"{one.expert_width:,}"]
        cells += [f"{one.shared:,}" if one.shared else "–", f"{one.router:.2%}", f"{one.running:.1%}"]
        kilobytes = 2 * BYTES * one.width / 1000  # there and back
        reached = (one.spread(devices) for devices in DEVICES)
        cells += ["–" if n is None else f"{kilobytes * n:.0f}" for n in reached]
        cells += [f"{kilobytes * (devices - 1):.0f}" for devices in DEVICES]
        yield f"| {' | '.join(cells)} |"
    most = max(published(), key=lambda one: one.router)
    yield f"\nNo router here costs more than {most.router:.1%} of its layer ({most.name})."


def _divided() -> Iterator[str]:
    yield f"d = {WIDTH:,}, {NEURONS:,} gated neurons, {ACTIVE:,} active; a risk of {RISK:.0%}; queries of rank {KEYS}.\n"
    yield "| expert width | E | k | full | low-rank (rank) | product keys | cheapest |"
    yield f"|{'---|' * 7}"
    for width in EXPERT_WIDTHS:
        found = {router: (rank, share) for router, rank, share in divided(width)}
        least = min(found, key=lambda name: found[name][1])
        shares = [f"{share:.1%}" + (f" ({rank:,})" if router == "low-rank" else "") for router, (rank, share) in found.items()]
        yield f"| {width} | {NEURONS // width:,} | {ACTIVE // width} | {' | '.join(shares)} | {least} |"


def _measured() -> Iterator[str]:
    data = json.loads((EVIDENCE / "distill-budget-dense-tiny.json").read_text(encoding="utf-8"))
    table = pd.DataFrame(**data["tables"]["students"])
    trivial = {name: fvu for _, name, fvu in data["tables"]["baselines"]["data"]}
    yield "| budget | router (rank) | experts | width | active | always | router's share | left | 95 % over seeds |"
    yield f"|{'---|' * 9}"
    for one in table.to_dict("records"):
        rank = "" if one["router"] == "full" else f" ({one['rank']})"
        dense = one["kind"] == "dense"
        cells = [f"{one['share']:.0%}" if one["share"] else "routers alone", "dense" if dense else f"{one['router']}{rank}"]
        cells += ["–"] * 3 if dense else [f"{one['experts']:,}", str(one["width"]), str(one["active"])]
        cells += [str(one["shared"]), f"{one['router_multiply_adds'] / one['multiply_adds']:.0%}", f"{one['fvu']:.3f}"]
        yield f"| {' | '.join(cells)} | {one['low']:.3f} to {one['high']:.3f} |"
    yield f"\nThe token's mean output leaves {trivial['token mean']:.3f}, a linear map {trivial['linear']:.3f}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
