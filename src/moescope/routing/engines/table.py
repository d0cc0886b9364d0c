"""Tables of layers and experts: llama.cpp's ``moe-trace`` (a row a choice), SGLang's older recorder (a row an expert)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moescope.errors import InputError
from moescope.files.text import lines, read_text
from moescope.routing.engines.model import EngineModel
from moescope.routing.load import RoutingLoad

_LAYER, _EXPERT, _COUNT = ("layer", "layer_id"), ("expert", "expert_id"), ("count",)
_LAYERS = 4096


def load_of(path: Path, model: EngineModel) -> RoutingLoad:
    """The load that a CSV holds: columns ``layer`` and ``expert`` (or ``layer_id`` and ``expert_id``), with or without a
    ``count``, and others that are not looked at. The rows of ``moe-trace`` do not say which token a choice was for.

    Raises:
        InputError: names the line with a column that is missing, or a number that cannot be.
    """
    rows = [(n, line.strip()) for n, line in enumerate(lines(read_text(path)), 1) if line.strip() and line.strip()[0] != "#"]
    if not rows:
        raise InputError(f"{path}: is empty; it needs a row for each choice")
    names = [cell.strip().lower() for cell in rows[0][1].split(",")]
    headed = not names[0].lstrip("-").isdigit()
    layer, expert, count = (_place(names, words) for words in (_LAYER, _EXPERT, _COUNT)) if headed else (0, 1, None)
    if layer is None or expert is None:
        raise InputError(f"{path}: line {rows[0][0]}: has columns {', '.join(names)[:80]}; it needs layer and expert")
    found: dict[tuple[int, int], int] = {}
    for number, line in rows[headed:]:
        cells = line.split(",")
        try:
            at, which = int(cells[layer]), int(cells[expert])
            times = 1 if count is None else int(cells[count])
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: line {number}: {line[:40]!r} has no whole numbers in layer and expert") from error
        if not (0 <= at < _LAYERS and 0 <= which < model.n_experts and 0 <= times < 2**53):
            raise InputError(
                f"{path}: line {number}: layer {at}, expert {which}, count {times}: experts are 0-{model.n_experts - 1}, "
                f"layers below {_LAYERS}, counts not below 0"
            )
        found[at, which] = found.get((at, which), 0) + times
    present = sorted({at for at, _ in found})
    layers = tuple(present) if model.layers is None else model.layers
    if strange := [at for at in present if at not in layers]:
        raise InputError(f"{path}: counts experts of layer {strange[0]}, which is not among those named", "layers")
    counts = np.zeros((1, len(layers), model.n_experts), np.int64)
    for (at, which), times in found.items():
        counts[0, layers.index(at), which] = times
    return RoutingLoad(layers, model.n_experts, counts, {"model": model.name, "source": "a table of layers and experts"})


def _place(names: list[str], words: tuple[str, ...]) -> int | None:
    return next((i for i, name in enumerate(names) if name in words), None)
