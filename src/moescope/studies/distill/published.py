"""What the source reports: "Secret mixtures of experts inside your LLM" (arXiv 2512.18452).

The full record is in `study/published`. ``fvu`` columns are, by active neurons: dense MLP, low-rank router with 10,000 and with
100,000 experts, full router with 100,000.
"""

from __future__ import annotations

from moescope.study.published import record

RECORD = record("secret_moe")
MODELS: tuple[str, ...] = tuple(RECORD["layers"])
RATIO_ACTIVE = 64  # active neurons of the headline ratio


def mean_ratio(data: str) -> float:
    """The dense/MoE ratio at 64 active neurons, mean over the source's three models; ``"activations"`` or ``"gaussian"``."""
    values: dict[str, float] = RECORD["mlp_over_moe_at_64_active"][data]
    return sum(values.values()) / len(values)


def table_ratio(data: str, model: str, active: int, column: str = "lowrank_10k") -> float | None:
    """Dense over MoE at ``active`` neurons in the source's table, or None where it has no such row."""
    row = RECORD[f"fvu_{data}"][model].get(str(active))
    return None if row is None else row[0] / row[RECORD["columns"].index(column)]
