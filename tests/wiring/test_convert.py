"""What splits an MLP, what judges the split, and what stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moescope.models import LoadedModel
from moescope.study.result import StudyResult
from tests.wiring import call
from tests.wiring.planted import expects, lookup_model

CLUSTERS, EACH, WIDTH = 10, 8, 32
EYE = np.eye(WIDTH)


def clustered() -> LoadedModel:
    """Word c turns on the neurons c, c + 10, c + 20, … of every layer, and no others; by them it expects itself again."""
    words = {f"w{c}": EYE[0] + 3 * EYE[1 + c] for c in range(CLUSTERS)} | {f"x{i}": EYE[0] + 3 * EYE[-1] for i in range(8)}
    model = lookup_model(words, layers=2, inner=CLUSTERS * EACH)
    with torch.no_grad():
        for layer in model.body.layers:
            mlp: Any = layer.mlp
            mlp.gate_proj.weight.zero_()
            mlp.up_proj.weight.zero_()
            for neuron in range(CLUSTERS * EACH):
                mlp.gate_proj.weight[neuron, 1 + neuron % CLUSTERS] = 2.0
                mlp.up_proj.weight[neuron, 1 + neuron % CLUSTERS] = 1.0
                mlp.down_proj.weight[1 + CLUSTERS + neuron % CLUSTERS, neuron] = 0.01
    for c in range(CLUSTERS):
        expects(model, f"w{c}", 6 * EYE[1 + CLUSTERS + c])
    return model


def repeated(words: list[str], n: int, seed: int = 0) -> list[str]:
    return [" ".join([words[i]] * 12) for i in np.random.default_rng(seed).integers(len(words), size=n)]


def converted(folder: Path, paragraphs: list[str], active: int) -> StudyResult:
    text = folder / "text.txt"
    text.write_text("\n".join(paragraphs))
    options: dict[str, Any] = {"experts": CLUSTERS, "active": active, "shared": 1, "window": 24, "heldout_tokens": 512}
    return call.convert(clustered(), folder / "out", texts=text, **options)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """The last quarter of the text, which judges, is in a language that the model does not know."""
    known = repeated([f"w{c}" for c in range(CLUSTERS)], 180)
    other = [" ".join(f"x{i}" for i in np.random.default_rng(i).integers(8, size=12)) for i in range(60)]
    return converted(tmp_path_factory.mktemp("foreign"), known + other, 3)


def test_quality_is_measured_on_text_that_did_not_calibrate(foreign: StudyResult) -> None:
    every = foreign.tables["frontier"].query("kind == 'converted'").sort_values("active").iloc[-1]
    assert every["loss"] > 2


def test_neurons_that_work_together_are_split_together_and_at_random_are_not(foreign: StudyResult) -> None:
    captured = foreign.tables["layers"].groupby("method")["captured"].mean()
    assert captured["coactivation"] > captured["random"] + 0.1


def test_static_pruning_keeps_what_contributes_most(tmp_path: Path) -> None:
    """Half of the words, and so half of the neurons, are never met: without those nothing is lost."""
    found = converted(tmp_path, repeated([f"w{c}" for c in range(CLUSTERS // 2)], 240), 5).tables["frontier"]
    row = found.query("kind == 'static' and active == 5").iloc[0]
    assert row["loss"] < 1
    assert abs(row["rise"]) < 0.05
