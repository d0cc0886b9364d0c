"""The texts with two labels, read once for both properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from moescope.capture import encode
from moescope.models import LoadedModel
from moescope.studies.circuits.causal_run import causal_sites
from moescope.studies.circuits.features import Columns, Features, capture_features
from moescope.studies.circuits.related.crossed import edit_table, strata_table
from moescope.studies.circuits.settings import CircuitSettings
from moescope.study.protocol import Context
from moescope.study.rows import FoldRows
from moescope.tasks.crossed import Crossed, load_crossed


def read_crossed(settings: CircuitSettings, context: Context) -> Crossed | None:
    """The texts that the settings name.

    Raises:
        InputError: they cannot be read; see :func:`~moescope.tasks.crossed.load_crossed`.
    """
    if settings.crossed is None:
        return None
    with context.noted():
        found = load_crossed(settings.crossed, limit=context.run.limit, seed=context.run.seed)
    context.stages.read(found)
    return found


def crossed_tables(
    model: LoadedModel,
    crossed: Crossed,
    columns: Columns,
    settings: CircuitSettings,
    context: Context,
    limits: Mapping[str, Any],
) -> dict[str, pd.DataFrame]:
    """The tables ``crossed_strata`` and ``crossed_edits``."""
    name = f"{crossed.cells.name}: reading activations"
    encoded = encode(model, [e.text for e in crossed.cells.examples], max_tokens=limits["max_tokens"])

    def reading() -> Features:
        with context.tokens.of(model, "crossed"):
            return capture_features(
                model, crossed.cells, columns, settings, seed=context.run.seed, encoded=encoded,
                final=causal_sites(model, columns), batch_tokens=limits["batch_tokens"], progress=context.counter(name),
            )  # fmt: skip

    here = context.stage(name, reading, task=crossed.cells, columns=columns)
    context.rows(FoldRows(f"{crossed.cells.name}: strata", here.groups, here.folds))
    strata = context.stage(f"{crossed.cells.name}: strata", lambda: strata_table(crossed, here, settings))
    return {"crossed_strata": strata, "crossed_edits": edit_table(model, crossed, here, settings, context)}
