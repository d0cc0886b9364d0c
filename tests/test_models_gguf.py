"""GGUF files are dequantised once, exactly, and read like any other model; what cannot be read says so in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from moescope.errors import InputError
from moescope.models import load
from moescope.models.load import LoadedModel
from moescope.study.protocol import Context
from moescope.study.provenance import subject
from moescope.study.run import Run
from moescope.study.settings import Settings
from moescope.zoo import PACKAGED, Packaged
from tests.seals import flip

gguf = pytest.importorskip("gguf")

_D, _FF, _LAYERS, _VOCABULARY = 64, 128, 2, 96


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(file: Path, *, lacking: str = "") -> dict[str, np.ndarray]:
    """A llama of two layers, its matrices in Q8_0; the weights as they were before."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(_D)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_D // 2)
    writer.add_vocab_size(_VOCABULARY)
    tokens = ["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(_VOCABULARY - 5)), "Ġ", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *([1] * (len(tokens) - 3))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    made: dict[str, np.ndarray] = {"token_embd.weight": rng.normal(size=(_VOCABULARY, _D)), "output_norm.weight": np.ones(_D)}
    made["output.weight"] = rng.normal(size=(_VOCABULARY, _D))
    for layer in range(_LAYERS):
        part = f"blk.{layer}."
        made |= {f"{part}attn_{name}.weight": rng.normal(size=(_D, _D)) / 8 for name in ("q", "k", "v", "output")}
        made |= {f"{part}ffn_{name}.weight": rng.normal(size=(_FF, _D)) / 8 for name in ("gate", "up")}
        made[f"{part}ffn_down.weight"] = rng.normal(size=(_D, _FF)) / 8
        made |= {f"{part}{name}.weight": np.ones(_D) for name in ("attn_norm", "ffn_norm")}
    for name, values in made.items():
        plain = values.astype(np.float32)
        if name == lacking:
            continue
        if plain.ndim == 1:
            writer.add_tensor(name, plain)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(plain, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def down(model: LoadedModel, layer: int) -> torch.Tensor:
    weight: torch.Tensor = model.body.layers[layer].mlp.down_proj.weight  # type: ignore[index, union-attr]
    return weight


def test_a_file_or_its_folder_is_dequantised_exactly_and_only_once(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "model" / "tiny.Q8_0.gguf"
    file.parent.mkdir()
    made = write(file)
    model = load(file, head=True)
    assert (model.name, model.n_layers, model.width(model.sites("mlp_act")[0])) == ("tiny.Q8_0", _LAYERS, _FF)
    assert model.quantisation == "Q8_0 100 %"
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf.quants.dequantize(gguf.quants.quantize(made["blk.1.ffn_down.weight"].astype(np.float32), kind), kind)
    assert torch.equal(down(model, 1), torch.from_numpy(stored))
    (folder,) = (own_cache / "gguf").iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = load(str(file.parent))
    assert again.fingerprint == model.fingerprint
    assert again.quantisation == model.quantisation
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_damaged_copy_is_made_anew(tmp_path: Path, own_cache: Path) -> None:
    write(tmp_path / "tiny.gguf")
    load(tmp_path / "tiny.gguf")
    (folder,) = (own_cache / "gguf").iterdir()
    before = (folder / "model.safetensors").read_bytes()
    flip(folder / "model.safetensors", at=0.9)
    assert (folder / "model.safetensors").read_bytes() != before
    load(tmp_path / "tiny.gguf")
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_result_names_the_quantisation(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    context = Context("circuits", Settings(), Run())
    model = context.load(tmp_path / "tiny.gguf")
    assert "quantised copy (Q8_0 100 %)" in context.notes[0]
    assert subject(model, [])["quantisation"] == "Q8_0 100 %"


def test_pieces_of_packages_are_joined_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    write(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    for number in (1, 2):
        package = tmp_path / f"made_part{number}"
        package.mkdir()
        (package / "__init__.py").write_text("raise AssertionError('never imported')\n")
    half = len(data) // 2
    (tmp_path / "made_part1" / "a").write_bytes(data[:half])
    (tmp_path / "made_part2" / "b").write_bytes(data[half:])
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = (("made_part1", "a"), ("made_part2", "b"))
    monkeypatch.setitem(PACKAGED, "made", Packaged("pip install made", paths, hashlib.sha256(data).hexdigest()))
    assert load("made").name == "made"
    monkeypatch.setitem(PACKAGED, "made", Packaged("pip install made", paths, "0" * 64))
    with pytest.raises(InputError, match="pieces do not make up the file"):
        load("made")
    assert not [path for path in (own_cache / "gguf").iterdir() if path.suffix]


def test_what_cannot_be_read_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"page\.gguf is no GGUF file"):
        load(tmp_path / "page.gguf")
    write(tmp_path / "whole.gguf")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"cut: the GGUF file .*cannot be read"):
        load(tmp_path / "cut.gguf")
    write(tmp_path / "lacking.gguf", lacking="blk.1.ffn_down.weight")
    with pytest.raises(InputError, match="lacks 1 tensors"):
        load(tmp_path / "lacking.gguf")
    (tmp_path / "big-00001-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="one of 3 files"):
        load(tmp_path / "big-00001-of-00003.gguf")
    with pytest.raises(InputError, match="holds 5 GGUF files"):
        load(tmp_path)
    assert not (own_cache / "gguf").exists() or not list((own_cache / "gguf").iterdir())


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_a_package_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.zoo.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"not installed: pip install") as caught:
        load(name)
    assert "\n" not in str(caught.value)
