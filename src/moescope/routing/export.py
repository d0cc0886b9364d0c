"""A routing trace as a Parquet table in long format: one row per token, layer and slot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moescope.errors import InputError
from moescope.files.atomic import whole_file
from moescope.files.remote import refuse
from moescope.routing.trace import RoutingTrace

_FIRST = ("sequence", "category", "group", "position", "generated")
_CHUNK = 1 << 14  # tokens turned into rows at a time


def check_export_target(path: str | Path, *, overwrite: bool) -> None:
    """Refuse a file that :func:`export_parquet` may not write to, before any work.

    Raises:
        InputError: it is there, and is not an earlier export or may not be replaced.
    """
    refuse(path, "name a file of this machine")
    target = Path(path)
    if not target.exists():
        return
    try:
        ours = set(_FIRST) <= set(pq.read_schema(target).names)
    except (OSError, pa.ArrowInvalid):
        ours = False
    if not ours:
        raise InputError(f"{target} is there already and is not an exported trace; name another file", "parquet")
    if not overwrite:
        raise InputError(f"{target} is there already; name another file, or replace it by overwrite=True", "parquet")


def export_parquet(trace: RoutingTrace, path: str | Path, *, overwrite: bool = False) -> int:
    """Write ``trace`` to one Parquet file, in pieces; returns its rows. Slots without an expert have no row.

    Columns: ``sequence`` (its id), ``category``, ``group``, ``position``, ``generated``, ``token`` (where recorded),
    ``layer`` (true number), ``slot``, ``expert``, ``weight`` (where recorded).

    Args:
        overwrite: replace an earlier export.

    Raises:
        InputError: the file cannot be written, or is there and may not be replaced.
    """
    check_export_target(path, overwrite=overwrite)
    target = Path(path)
    names = {part: _words([getattr(s, part) for s in trace.sequences]) for part in ("id", "category", "group")}
    rows = 0
    with whole_file(target) as file, pq.ParquetWriter(file, _schema(trace), compression="zstd") as writer:
        for start in range(0, len(trace), _CHUNK):
            table = _rows(trace, names, start, min(len(trace), start + _CHUNK))
            writer.write_table(table)
            rows += len(table)
    return rows


def _words(values: list[str | None]) -> pa.DictionaryArray:
    """Strings as numbers into the list of their kinds; None stays none."""
    # half a character, which JSON may hold, is none of UTF-8
    whole = [v if v is None else v.encode("utf-8", "replace").decode() for v in values]
    return pa.array(whole, pa.string()).dictionary_encode()


def _schema(trace: RoutingTrace) -> pa.Schema:
    word = pa.dictionary(pa.int32(), pa.string())
    fields = list(zip(_FIRST, (word, word, word, pa.int32(), pa.bool_()), strict=True))
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
