"""Tensors that a checkpoint holds and its model has no place for: an error where they matter, else no alarm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moescope.errors import InputError
from moescope.models import load
from tests.architectures import build, tiny_tokenizer

ONE = torch.ones(1)


def spoilt(
    folder: Path, name: str = "llama", *, extra: tuple[str, ...] = (), head: bool = True, weights: Any = None, **changes: Any
) -> Path:
    """A tiny model with further tensors in its weights, ``weights`` changed and ``changes`` in its config."""
    build(name, head=head).save_pretrained(folder)
    tiny_tokenizer(encoder=name == "bert").save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors") | {key: ONE.clone() for key in extra}
    if weights is not None:
        tensors = {key: weights(key, tensor) for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"extra": ("model.layers.1.mlp.down_proj.weight_scale_inv",)}, "weight_scale_inv.*scales of quantised weights"),
    ({"extra": ("model.layers.0.self_attn.q_proj.SCB",)}, r"q_proj\.SCB.*no quantization_config"),
    ({"extra": ("model.layers.0.self_attn.q_proj.qzeros",)}, r"q_proj\.qzeros.*no quantization_config"),
    ({"num_hidden_layers": 3}, r"hold 9 tensors .*model\.layers\.3\..*num_hidden_layers = 3: take"),
    ({"num_hidden_layers": 3, "head": False}, r"hold 9 tensors .*layers\.3\..*num_hidden_layers = 3: take"),
    ({"extra": ("model.layers.0.mlp.down_proj.lora_A.weight",)}, "lora_A.*merge it into the model"),
    ({"extra": ("model.layers.0.self_attn.q_proj.bias",)}, r"q_proj\.bias.*of another model, or of another version"),
    ({"extra": ("model.layers.0.mlp.extra.weight", "model.odd.weight")}, "hold 2 tensors"),
    ({"name": "gpt2", "extra": ("h.0.ln_3.weight",), "head": False}, "ln_3"),
    ({"name": "bert", "extra": ("bert.encoder.layer.1.odd.weight",)}, "odd"),
    ({"name": "glm4_moe", "extra": ("model.layers.1.mlp.experts.0.odd.weight",)}, "odd"),
]


@pytest.mark.parametrize(("how", "message"), REFUSED)
def test_a_tensor_without_a_place_is_named(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    folder = spoilt(tmp_path / "tiny", **how)
    for head in (False, True) if how.get("head", True) else (False,):
        with pytest.raises(InputError, match=message) as error:
            load(folder, head=head)
        assert re.match(r"model 'tiny' \(\S*tiny\): its weights hold ", str(error.value))
        assert "\n" not in str(error.value)


def test_more_layers_than_tensors_are_refused_before_they_are_built(tmp_path: Path) -> None:
    folder = spoilt(tmp_path / "tiny", num_hidden_layers=4_000_000)
    with pytest.raises(InputError, match="asks for 4000000 layers, and its weights have 39 tensors: take the one"):
        load(folder)


def test_beside_a_head_it_matters_only_where_the_head_is_read(tmp_path: Path) -> None:
    folder = spoilt(tmp_path / "tiny", extra=("lm_head.weight_scale",))
    load(folder)
    with pytest.raises(InputError, match=r"lm_head\.weight_scale"):
        load(folder, head=True)


SPARED: list[dict[str, Any]] = [
    {},
    {"extra": ("v_head.summary.weight", "score.weight")},
    {"extra": ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")},
    {"extra": ("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale")},
    {"extra": ("mtp.layers.0.weight", "model.mtp.norm.weight")},
    {"extra": ("model.vision_tower.patch.weight", "multi_modal_projector.weight")},
    {"extra": ("model.layers.4.eh_proj.weight", "model.layers.4.mlp.up_proj.weight"), "num_nextn_predict_layers": 1},
    {"name": "gpt2", "extra": ("transformer.h.0.attn.masked_bias", "transformer.h.0.attn.bias")},
    {"name": "gpt2", "extra": ("h.0.attn.masked_bias", "h.0.attn.bias"), "head": False},
    {"name": "gpt_neox", "extra": ("gpt_neox.layers.0.attention.masked_bias", "gpt_neox.layers.0.attention.bias")},
    {"name": "bert", "extra": ("cls.seq_relationship.weight", "bert.embeddings.position_ids")},
    {"name": "bert", "extra": ("bert.pooler.odd.weight",)},
    {"name": "glm4_moe", "extra": ("model.layers.46.odd.weight", "model.layers.92.odd.weight")},
    {"name": "gemma2"},  # tied
    {"name": "mixtral"},
    {"name": "gpt_oss"},
    {"name": "qwen3_moe"},
]


@pytest.mark.parametrize("how", SPARED, ids=lambda how: "-".join([how.get("name", "llama"), *how.get("extra", ())[:1]]))
def test_what_may_be_left_out_raises_no_alarm(tmp_path: Path, how: dict[str, Any]) -> None:
    folder = spoilt(tmp_path / "tiny", **how)
    plain = spoilt(tmp_path / "plain", **{key: value for key, value in how.items() if key != "extra"})
    for head in (False, True) if how.get("head", True) else (False,):
        assert load(folder, head=head).fingerprint == load(plain, head=head).fingerprint


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_codes_without_a_way_to_read_them(tmp_path: Path, kind: torch.dtype) -> None:
    folder = spoilt(tmp_path / "tiny", weights=lambda key, tensor: tensor.to(kind) if "down_proj" in key else tensor)
    with pytest.raises(InputError, match=r"quantised \(.*down_proj\.weight is stored as .*no quantization_config") as error:
        load(folder)
    assert "\n" not in str(error.value)
