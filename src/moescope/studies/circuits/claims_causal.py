"""Claims about what happens when a circuit is switched off, or the class direction erased."""

from __future__ import annotations

import pandas as pd

from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.verdicts import significant
from moescope.types import Claim

_TARGETS = {
    "probe_accuracy": ("a probe downstream", "accuracy"),
    "answer_accuracy": ("the model's own answer", "accuracy"),
    "answer_logodds": ("the model's odds of the right answer", "log-odds, nats"),
    "wikitext_loss": ("the loss on other text", "nats per token"),
}


def ablation_claims(ablation: pd.DataFrame, settings: CircuitSettings) -> list[Claim]:
    """One claim per task and target at the headline K: does switching the circuit off hurt more than matched neurons?"""
    claims = []
    for (task, target), rows in ablation.groupby(["task", "target"], sort=False):
        row = rows.loc[(rows["k"] - settings.k).abs().idxmin()]
        harmful = significant(float(row["p"]))
        what, unit = _TARGETS[str(target)]
        ratio = float(row["norm_ratio"])
        # Massive activations have no match in their layer.
        badly = "" if 0.5 <= ratio <= 2 else f"; matching failed: the random neurons have {ratio:.2g} times the circuit's norm"
        claims.append(
            Claim(
                name=f"{task}: switching the circuit off harms {what}",
                measured=float(row["effect"]),
                null=float(row["random_mean"]),
                p=float(row["p"]),
                verdict="measured",
                note=f"{'yes' if harmful else 'no'}: change in {unit} (from {float(row['baseline']):.3g}) by {row['mode']} "
                f"ablation of {int(row['k'])} neurons is {'worse' if harmful else 'no worse'} than that of "
                f"{int(row['n_random'])} random sets matched on layer and norm, 95 % of which give "
                f"{float(row['random_low']):+.3g} to {float(row['random_high']):+.3g}; a lower bound, since later layers "
                f"repair{badly}",
                details={"target": str(target), "k": int(row["k"])},
            )
        )
    return claims


def erasure_claims(erasure: pd.DataFrame) -> list[Claim]:
    """One claim per task: how far erasing the class direction (LEACE) at one layer lowers a probe downstream."""
    claims = []
    for task, rows in erasure[erasure["target"] == "probe_accuracy"].groupby("task", sort=False):
        row = rows.loc[rows["effect"].idxmin()]
        claims.append(
            Claim(
                name=f"{task}: erasing the class direction harms a probe downstream",
                measured=float(row["effect"]),
                null=float(row["random_mean"]),
                verdict="measured",
                note=f"LEACE after layer {int(row['layer'])}, the layer of the largest effect of {len(rows)}, from an accuracy "
                f"of {float(row['baseline']):.3g}; erasing permuted labels gives {float(row['random_low']):+.3g} to "
                f"{float(row['random_high']):+.3g}. Where "
                "this harms and ablating a few neurons does not, the class is spread over many",
            )
        )
    return claims
