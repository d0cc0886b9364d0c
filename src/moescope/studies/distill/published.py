"""What the source reports: "Secret mixtures of experts inside your LLM" (arXiv 2512.18452).

The full record is in `study/published`. ``fvu`` columns are, by active neurons: dense MLP, low-rank router with 10,000 and with
100,000 experts, full router with 100,000.
"""

from __future__ import annotations

from statistics import fmean

from moescope.study.published import record
from moescope.types import Published

RECORD = record("secret_moe")
MODELS: tuple[str, ...] = tuple(RECORD["layers"])
RATIO_ACTIVE = 64  # active neurons of the headline ratio


_SOURCE = "arXiv 2512.18452, mean of three models at 64 active neurons"
CONTRAST = Published("1.79 to 2.09 over 1.03 to 1.13", "arXiv 2512.18452, three models at 64 active neurons")
COST = Published("below 1 nearly everywhere", "arXiv 2512.18452, cost with the router's")


def headline(data: str) -> Published:
    """The dense/MoE ratio at 64 active neurons; ``"activations"`` or ``"gaussian"``."""
    return Published(fmean(RECORD["mlp_over_moe_at_64_active"][data].values()), _SOURCE)


def routers() -> Published:
    """Full over low-rank router, 100,000 experts, 64 active neurons."""
    low, full = (RECORD["columns"].index(name) for name in ("lowrank_100k", "fullrank_100k"))
    rows = [RECORD["fvu_activations"][model][str(RATIO_ACTIVE)] for model in MODELS]
    return Published(fmean(row[full] / row[low] for row in rows), _SOURCE)


def table_ratio(data: str, model: str, active: int, column: str = "lowrank_10k") -> float | None:
    """Dense over MoE at ``active`` neurons in the source's table, or None where it has no such row."""
    row = RECORD[f"fvu_{data}"][model].get(str(active))
    return None if row is None else row[0] / row[RECORD["columns"].index(column)]
