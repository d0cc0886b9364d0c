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

CLUSTERS, EACH, WIDTH = 8, 6, 16


def clustered() -> LoadedModel:
    """Word c turns on the neurons c, c + 8, c + 16, … of every layer, and no others; it expects itself to come again."""
    eye = np.eye(WIDTH)
    words = {f"w{c}": eye[0] + 3 * eye[1 + c] for c in range(CLUSTERS)} | {f"x{i}": eye[0] + 3 * eye[9] for i in range(8)}
    model = lookup_model(words, layers=2)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.body.layers:
            mlp: Any = layer.mlp
            for part in (mlp.gate_proj, mlp.up_proj):
                part.weight.zero_()
            for neuron in range(CLUSTERS * EACH):
                mlp.gate_proj.weight[neuron, 1 + neuron % CLUSTERS] = 2.0
                mlp.up_proj.weight[neuron, 1 + neuron % CLUSTERS] = 1.0
            mlp.down_proj.weight.copy_(0.05 * torch.randn(WIDTH, CLUSTERS * EACH, generator=rng))
    for c in range(CLUSTERS):
        expects(model, f"w{c}", 3 * eye[1 + c])
    return model


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """The last quarter of the text, which judges, is in a language that the model does not know."""
    rng = np.random.default_rng(0)
    known = [" ".join([f"w{rng.integers(CLUSTERS)}"] * 12) for _ in range(240)]
    foreign = [" ".join(f"x{i}" for i in rng.integers(8, size=12)) for _ in range(80)]
    folder = tmp_path_factory.mktemp("convert")
    text = folder / "text.txt"
    text.write_text("\n".join(known + foreign))
    return call.convert(
        clustered(), folder / "out", calibration=text, experts=8, active=2, shared=0, window=24, heldout_tokens=512
    )


def test_quality_is_measured_on_text_that_did_not_calibrate(study: StudyResult) -> None:
    every = study.tables["frontier"].query("kind == 'converted'").sort_values("active").iloc[-1]
    assert every["loss"] > 1


def test_neurons_that_work_together_are_split_together_and_at_random_are_not(study: StudyResult) -> None:
    captured = study.tables["layers"].groupby("method")["captured"].mean()
    assert captured["coactivation"] > captured["random"] + 0.05
