"""Which share of the neurons, and how many bits: the fewest bytes that keep the tolerance on validation text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
from scipy.stats import norm

from moescope.intervene.held_out import Windows
from moescope.intervene.quality import Contender, Quality, compare
from moescope.models import LoadedModel
from moescope.models.gated import GatedMLP
from moescope.studies.sparsify import cost
from moescope.studies.sparsify.calibration import even
from moescope.studies.sparsify.methods import ByNeuron, by_planes, coded, replaced
from moescope.studies.sparsify.settings import Format


def search(
    model: LoadedModel,
    mlps: Sequence[GatedMLP],
    formats: Sequence[Format],
    windows: Windows,
    tolerance: float,
    seed: int,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Format, pd.DataFrame]:
    """The format of the fewest bytes whose rise is within the tolerance with the upper end of its interval, which is widened
    for the number that are tried; or, where none is, within half of it with itself; where none is either, the one that loses
    least. And the table ``search``."""
    shape = cost.Shape(mlps[0].width, mlps[0].neurons)
    measured: list[tuple[Format, float, Quality]] = []
    every = sorted({form.bits for form in formats})
    for turn, bits in enumerate(every):
        layers = coded(mlps, bits)  # one number of bits at a time is held
        some = [form for form in formats if form.bits == bits]
        ways = [ByNeuron(layers, by_planes(form.choose), even(layers, form.share)) for form in some]
        pairs = zip(some, ways, strict=True)
        contenders = [Contender(str(form), model.module, partial(replaced, way), way) for form, way in pairs]

        def told(done: int, total: int, turn: int = turn) -> None:
            if report is not None:
                report(turn * total + done, len(every) * total)

        found = compare(model.module, contenders, windows, seed=seed, report=told)[1:]
        for form, way, quality in zip(some, ways, found, strict=True):
            measured.append((form, cost.by_planes(shape, way.share("neurons"), bits, form.choose), quality))
    measured.sort(key=lambda entry: entry[1])
    kept = _fewest(measured, tolerance)
    return kept, pd.DataFrame(
        [
            {
                "choose": form.choose,
                "bits": form.bits,
                "share": form.share,
                "bytes": nbytes,
                "kl": q.kl,
                "rise": q.rise,
                "low": q.low,
                "high": q.high,
                "kept": form == kept,
            }
            for form, nbytes, q in measured
        ]
    )


def _fewest(measured: Sequence[tuple[Format, float, Quality]], tolerance: float) -> Format:
    # of many that are tried some look good by luck: the bound is widened for their number (Bonferroni)
    wider = float(norm.ppf(1 - 0.025 / len(measured)) / norm.ppf(0.975))
    shown = [form for form, _, q in measured if q.rise + wider * (q.high - q.rise) <= tolerance]  # none is, of a NaN
    seen = [form for form, _, q in measured if q.rise <= tolerance / 2]
    if shown or seen:
        return (shown or seen)[0]
    return min(measured, key=lambda entry: entry[2].loss)[0]
