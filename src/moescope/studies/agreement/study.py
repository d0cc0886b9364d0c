"""The agreement study: do two recordings of the same tokens route alike, and where do they part?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from moescope.routing.store import trace_of
from moescope.routing.trace import RoutingTrace
from moescope.studies.agreement.claims import agreement_claims
from moescope.studies.agreement.matched import Agreement, agreement_of
from moescope.studies.agreement.settings import AgreementSettings
from moescope.study.paired import interval_over
from moescope.study.protocol import Context
from moescope.study.repeat import verb
from moescope.study.result import StudyResult
from moescope.study.run import Run

_SETTINGS, _RUN = AgreementSettings(), Run()


@verb
def agreement(
    trace_a: RoutingTrace | str | Path,
    trace_b: RoutingTrace | str | Path,
    yardstick: RoutingTrace | str | Path | None = None,
    settings: AgreementSettings = _SETTINGS,
    *,
    run: Run = _RUN,
) -> StudyResult:
    """Compare two traces token by token: two engines, two precisions, a quantised and a full model.

    Sequences are matched by id, tokens by position, up to the first token that differs where both traces hold token ids.

    Args:
        trace_a, trace_b: traces, or the folders that hold them.
        yardstick: a trace that ought to agree with A, such as the same model in bf16, or the same engine once more; without it
            nothing says how much disagreement is to be expected.

    Returns:
        A result of kind ``"agreement"``: tables ``layers`` and ``sequences``.

    Raises:
        InputError: the traces are of models with other layers or experts, or have no token in common.

    >>> import moescope
    >>> result = moescope.agreement("engine-a", "engine-b", "engine-a-again")  # doctest: +SKIP
    >>> result.table("layers")[["layer", "shared", "yardstick"]]  # doctest: +SKIP
    """
    context = Context("agreement", settings, run, of=AgreementSettings)
    a, b = trace_of(trace_a), trace_of(trace_b)
    names = _name(trace_a, "A"), _name(trace_b, "B")
    found = agreement_of(a, b, names)
    noise = None if yardstick is None else agreement_of(a, trace_of(yardstick), (names[0], _name(yardstick, "the yardstick")))
    compared = set(found.sequences["sequence"])
    left_out = int(found.sequences["left_out"].sum()) + sum(
        int(n) for s, n in zip(a.sequences, a.lengths, strict=True) if s.id not in compared
    )
    if left_out:
        context.note(f"Note: {left_out:,} tokens are in one trace alone, or follow a token that differs, and are not compared.")
    return context.result(
        model=str(a.meta.get("model", "unknown")),
        title=f"Routing in {names[0]} and in {names[1]}",
        claims=agreement_claims(found, noise, a.layers, settings.margin, run.seed),
        tables={"layers": _layers(found, noise, a.layers, run.seed), "sequences": found.sequences},
        traces={key: trace.meta for key, trace in (("a", a), ("b", b))},
    )


def _name(trace: RoutingTrace | str | Path, letter: str) -> str:
    return letter if isinstance(trace, RoutingTrace) else str(trace)


def _layers(found: Agreement, noise: Agreement | None, layers: tuple[int, ...], seed: int) -> pd.DataFrame:
    first = np.bincount(found.first, minlength=len(layers) + 1)[: len(layers)] / len(found.first)
    rows = []
    for i, layer in enumerate(layers):
        values = found.shared[:, i].astype(float)
        low, high = interval_over(values, found.unit, seed)
        row = {"layer": layer, "shared": float(values.mean()), "low": low, "high": high, "same": float(found.same[:, i].mean())}
        row |= {"first": float(first[i]), "chance": float(found.chance[i])}
        rows.append(row if noise is None else row | {"yardstick": float(noise.shared[:, i].mean())})
    return pd.DataFrame(rows)
