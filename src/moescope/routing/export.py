"""A routing trace as a Parquet table in long format: one row per token, layer and slot."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moescope.files.atomic import cannot_write
from moescope.routing.trace import RoutingTrace

_CHUNK = 1 << 14  # tokens turned into rows at a time


def export_parquet(trace: RoutingTrace, path: str | Path) -> int:
    """Write ``trace`` to one Parquet file, in pieces; returns its rows. Slots without an expert have no row.

    Columns: ``sequence`` (its id), ``category``, ``group``, ``position``, ``generated``, ``token`` (where recorded),
    ``layer`` (true number), ``slot``, ``expert``, ``weight`` (where recorded).

    Raises:
        InputError: the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    names = {part: _words([getattr(s, part) for s in trace.sequences]) for part in ("id", "category", "group")}
    rows = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = pq.ParquetWriter(temporary, _schema(trace), compression="zstd")
        with writer:
            for start in range(0, len(trace), _CHUNK):
                table = _rows(trace, names, start, min(len(trace), start + _CHUNK))
                writer.write_table(table)
                rows += len(table)
        os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _words(values: list[str | None]) -> pa.DictionaryArray:
    """Strings as numbers into the list of their kinds; None stays none."""
    return pa.array(values, pa.string()).dictionary_encode()


def _schema(trace: RoutingTrace) -> pa.Schema:
    word = pa.dictionary(pa.int32(), pa.string())
    fields = [("sequence", word), ("category", word), ("group", word), ("position", pa.int32()), ("generated", pa.bool_())]
    if trace.tokens is not None:
        fields.append(("token", pa.int32()))
    fields += [("layer", pa.int16()), ("slot", pa.int16()), ("expert", pa.int32())]
    if trace.weights is not None:
        fields.append(("weight", pa.float32()))
    return pa.schema(fields)


def _rows(trace: RoutingTrace, names: dict[str, pa.DictionaryArray], start: int, stop: int) -> pa.Table:
    ids = trace.ids[start:stop]
    token, layer, slot = np.nonzero(ids != trace.empty)
    at = token + start
    index = pa.array(trace.sequence[at], pa.int32())
    columns = {
        "sequence": names["id"].take(index),
        "category": names["category"].take(index),
        "group": names["group"].take(index),
        "position": trace.position[at],
        "generated": trace.generated[at],
        "layer": np.asarray(trace.layers, np.int16)[layer],
        "slot": slot.astype(np.int16),
        "expert": ids[token, layer, slot].astype(np.int32),
    }
    if trace.tokens is not None:
        columns["token"] = trace.tokens[at]
    if trace.weights is not None:
        columns["weight"] = trace.weights[at, layer, slot].astype(np.float32)
    schema = _schema(trace)
    return pa.table([columns[name] for name in schema.names], schema=schema)
