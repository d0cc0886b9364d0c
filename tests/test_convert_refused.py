"""What cannot be converted is refused in one line that names it, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moescope.errors import InputError
from moescope.models import from_model
from moescope.studies.convert.settings import ConvertSettings, counts_of
from moescope.studies.convert.target import target_config, target_of
from moescope.types import Circuit, Neuron, Site
from tests.architectures import TINY, build, tiny_model, tiny_tokenizer
from tests.made_conversions import conversion, source


def refused(model: Any, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        conversion(model, folder, **({"speed": False} | options))
    assert "\n" not in str(caught.value)
    assert not folder.exists() or "not a moescope result" in str(caught.value)
    assert not list(folder.parent.glob(".*.partial"))
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(set(TINY) - {"llama", "mistral", "qwen2", "qwen3", "olmo2", "arcee", "phi3"}))
def test_other_types_by_name(name: str, tmp_path: Path) -> None:
    message = refused(tiny_model(name, head=True), tmp_path / "out")
    assert repr(tiny_model(name).config.model_type) in message


@pytest.mark.parametrize(("name", "module"), [("gemma3", "norms before and after both"), ("gpt_neox", "side by side")])
def test_the_module_that_no_target_has_is_named(name: str, module: str, tmp_path: Path) -> None:
    assert module in refused(tiny_model(name, head=True), tmp_path / "out")


def test_a_mixture_of_experts_is_pointed_elsewhere(tmp_path: Path) -> None:
    message = refused(tiny_model("olmoe", head=True), tmp_path / "out")
    assert "is a mixture of experts already (num_experts = 6)" in message
    assert "moescope signatures" in message


def test_a_model_without_its_head(tmp_path: Path) -> None:
    assert "head=True" in refused(tiny_model("llama"), tmp_path / "out")


def test_a_bias_that_has_no_place(tmp_path: Path) -> None:
    model = from_model(build("llama", head=True, attention_bias=True), tiny_tokenizer())
    assert "model.layers.0.self_attn.o_proj.bias" in refused(model, tmp_path / "out")
    model = from_model(build("llama", head=True, mlp_bias=True), tiny_tokenizer())
    assert "model.layers.0.mlp" in refused(model, tmp_path / "out")


def test_text_that_is_too_short(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A few words.\nAnd a few more of them.\n")
    message = refused(source("llama"), tmp_path / "out", texts=short, window=16)
    assert "short.txt" in message
    assert "at least 1024" in message
    long = tmp_path / "long.txt"
    long.write_text("\n".join(f"Line {i} of a text that is long enough." for i in range(200)))
    message = refused(source("llama"), tmp_path / "out", texts=long, heldout=short, window=256)
    assert "held-out" in message
    assert "is the calibration text" in refused(source("llama"), tmp_path / "out", texts=long, heldout=long)
    assert "no such file" in refused(source("llama"), tmp_path / "out", texts=tmp_path / "absent.txt")


def test_a_folder_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    message = refused(source("llama"), tmp_path / "mine", overwrite=True)
    assert "not a moescope result" in message
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_counts(tmp_path: Path) -> None:
    assert "take 2, 4, 8" in refused(source("llama"), tmp_path / "out", experts=7)
    for options in ({"active": 9}, {"active": 1}, {"shared": 0}, {"shared": 3}):
        message = refused(source("llama"), tmp_path / "out", **({"experts": 8, "active": 3} | options))
        assert message.startswith(f"{next(iter(options))}: ")
    assert "no shared experts" in refused(source("olmo2"), tmp_path / "out", experts=8, active=3, shared=1)


def test_counts_that_are_left_open() -> None:
    """Llama 2, Llama 3, Qwen2.5 0.5B and the embedded model: about 192 experts of a multiple of eight neurons."""
    for width, experts in ((11008, 172), (14336, 224), (4864, 152), (640, 80)):
        counts = counts_of(ConvertSettings(), width, has_shared=True)
        assert (counts.experts, counts.active) == (experts, round(experts / 4))
        assert width % counts.experts == 0
        assert width // counts.experts % 8 == 0
    assert counts_of(ConvertSettings(), 640, has_shared=False).shared == 0


@pytest.mark.parametrize(
    ("neuron", "text"),
    [(Neuron(Site("resid", 0), 3), "lies in resid"), (Neuron(Site("mlp_act", 0), 999), "is not in model")],
)
def test_circuits_that_hold_no_neurons_of_the_mlps(neuron: Neuron, text: str, tmp_path: Path) -> None:
    circuit = Circuit("certainty", (neuron,), (1.0,))
    assert text in refused(source("llama"), tmp_path / "out", method="circuits", circuits=[circuit], experts=8)
    assert refused(source("llama"), tmp_path / "out", method="circuits", experts=8).startswith("circuits: ")


def test_a_sliding_window_shortens_the_context() -> None:
    model = from_model(build("mistral", head=True, sliding_window=16, intermediate_size=64), tiny_tokenizer())
    target = target_of(model.module, model.config)
    config = target_config(target, model.config, counts_of(ConvertSettings(experts=8), 64, has_shared=True))
    assert config.max_position_embeddings == 16
    assert "last 16 tokens" in target.notes[0]
    unused = build("qwen2", head=True, intermediate_size=64, sliding_window=16, use_sliding_window=False)
    assert target_of(unused, unused.config).max_positions == 256


def test_interruption_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moescope.studies.convert.study.measure_frontier", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conversion(source("llama"), tmp_path / "out", experts=8, speed=False, window=64, calibration_tokens=2048)
    assert [path.name for path in tmp_path.iterdir()] == [".out.work"]  # the layers that are split


def test_weights_are_safetensors_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    conversion(
        source("llama"),
        tmp_path / "out",
        experts=8,
        active=3,
        speed=False,
        controls=False,
        window=64,
        calibration_tokens=2048,
        heldout_tokens=256,
    )
    names = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert "model.safetensors" in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl"))]
