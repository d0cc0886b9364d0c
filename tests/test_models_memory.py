"""Models in memory and adapters: read as the plain models that they stand for, or refused by name; whether a model fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import moescope
from moescope.capture import activations, encode
from moescope.errors import InputError
from moescope.files import memory
from moescope.models import LoadedModel, from_model, load
from moescope.types import Site
from tests.architectures import build, save_tiny, tiny_tokenizer

peft = pytest.importorskip("peft")
QUICK = moescope.CircuitSettings(n_permutations=99, n_label_permutations=0, n_random=20, twin=False)
IDS = torch.arange(24).reshape(2, 12)


def line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def adapted(base: Any, **settings: Any) -> Any:
    """A LoRA adapter on every linear map, none of its maps nought."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = peft.get_peft_model(base, peft.LoraConfig(**({"r": 4, "target_modules": "all-linear"} | settings)))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_an_adapter_is_merged_into_a_copy(name: str, settings: dict[str, Any]) -> None:
    plain = from_model(build(name, head=True), tiny_tokenizer())
    given = adapted(build(name, head=True), **settings)
    before = logits(given)
    assert not torch.allclose(before, logits(plain.module), atol=0.01)
    model = from_model(given, tiny_tokenizer())
    assert model.sites() == plain.sites()
    assert [model.width(site) for site in model.sites()] == [plain.width(site) for site in plain.sites()]
    assert not any("lora" in key for key in model.module.state_dict())
    torch.testing.assert_close(logits(model.module), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(given), before)  # the user's own is as it was
    with given.disable_adapter():
        off = from_model(given, tiny_tokenizer())
    torch.testing.assert_close(logits(off.module), logits(plain.module))


def test_adapters_put_into_a_model_without_a_wrapper() -> None:
    given = build("llama", head=True)
    settings = peft.LoraConfig(r=4, target_modules=["down_proj", "q_proj"], init_lora_weights=False)
    given = peft.inject_adapter_in_model(settings, given)
    before = logits(given)
    model = from_model(given.eval(), tiny_tokenizer())
    assert model.width(Site("mlp_act", 0)) == 48
    torch.testing.assert_close(logits(model.module), before, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_the_input_is_refused() -> None:
    given = peft.get_peft_model(build("llama", head=True), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match=r"PROMPT_TUNING, which adds to the input .* give the base model") as error:
        from_model(given, tiny_tokenizer())
    line(error)


class Wrapped(nn.Module):
    """A LoRA of somebody's own, which peft knows nothing of."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.lora_A = nn.Linear(linear.in_features, 4, bias=False)
        self.lora_B = nn.Linear(4, linear.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.lora_B(self.lora_A(x))


def test_a_wrapped_linear_map_is_read_as_one() -> None:
    given = build("llama", head=True)
    for layer in given.model.layers:
        for block, names in ((layer.mlp, ("gate_proj", "up_proj", "down_proj")), (layer.self_attn, ("q_proj", "o_proj"))):
            for name in names:
                setattr(block, name, Wrapped(getattr(block, name)))
    model = from_model(given, tiny_tokenizer())
    assert model.sites() == from_model(build("llama", head=True), None).sites()
    assert model.width(Site("mlp_act", 2)) == 48
    seen: list[torch.Tensor] = []
    given.model.layers[1].mlp.down_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    read = activations(model, ["a text"], [Site("mlp_out", 1)])
    np.testing.assert_array_equal(read[0, 0], seen[0][0, -1].numpy())


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """The folder of an adapter beside that of its base, and the logits of both together."""
    save_tiny(tmp_path / "base")
    given = adapted(build("llama", head=True), target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    given.peft_config["default"].base_model_name_or_path = "base"
    given.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits(given)


def test_the_folder_of_an_adapter_is_its_base_with_it(adapter: tuple[Path, torch.Tensor]) -> None:
    folder, expected = adapter
    model = load(folder, head=True)
    assert model.name == "adapter"
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    body = load(str(folder))
    assert not body.has_head
    assert body.fingerprint == model.fingerprint != load(folder.parent / "base").fingerprint


def test_an_adapter_that_cannot_be_used(adapter: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = adapter
    fields = json.loads((folder / "adapter_config.json").read_text())

    def refused(message: str, **changes: Any) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(fields | changes))
        with pytest.raises(InputError, match=message) as error:
            load(folder)
        line(error)

    refused("is an adapter of 'elsewhere', which cannot be loaded", base_model_name_or_path="./elsewhere".removeprefix("./"))
    refused("names no base_model_name_or_path", base_model_name_or_path=None)
    refused("does not fit its model", target_modules=["q_proj"])
    refused("cannot be merged into its model", r=8)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused("pickles are never read")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    refused(r"needs peft: pip install 'moescope\[finetune\]'")


def test_every_way_to_give_a_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    module, tokenizer = build("llama", head=True), tiny_tokenizer()
    wanted = load(folder)
    given: list[Any] = [
        folder, str(folder), wanted, (module, tokenizer), [module, tokenizer], nn.DataParallel(module), torch.compile(module),
    ]  # fmt: skip
    for one in given:
        model = load(one, tokenizer=tokenizer) if isinstance(one, nn.Module) else load(one)
        assert model.fingerprint == wanted.fingerprint
        assert model.tokenizer is not None
    assert load((module, tokenizer)).name == "LlamaForCausalLM"
    assert load((module, tokenizer), head=True).has_head


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: build("llama"), r"^model: LlamaModel has no tokenizer, .* give \(model, tokenizer\)"),
        (lambda: nn.Linear(2, 2), "of class Linear has no Hugging Face config"),
        (lambda: (nn.Linear(2, 2), tiny_tokenizer()), "of class Linear has no Hugging Face config"),
        (lambda: (tiny_tokenizer(), build("llama")), r"^model: an object of class .*Tokenizer.* is no model"),
        (lambda: (build("llama"), "tokenizer"), "^tokenizer: an object of class str is no tokenizer"),
        (lambda: (build("llama"),), "^model: 1 things were given: give a pair"),
        (lambda: 3, "^model: an object of class int is no model: give a name, a folder"),
        (lambda: None, "^model: an object of class NoneType is no model"),
        (lambda: {"weight": torch.ones(2)}, "^model: an object of class dict is no model"),
    ],
)
def test_what_is_no_model(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        moescope.exit(given(), ["certainty=halueval"])
    line(error)


def test_a_head_that_predicts_no_tokens_is_left_out() -> None:
    import transformers

    config = build("llama").config
    config.num_labels = 3
    model = from_model(transformers.LlamaForSequenceClassification(config), tiny_tokenizer())
    assert not model.has_head
    with pytest.raises(InputError, match="has no language-model head") as error:
        load(model, head=True)
    line(error)


def test_a_token_beyond_the_embedding_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    model = from_model(build("llama"), tokenizer)
    texts = ["a", "<|im_start|>b"]
    with pytest.raises(InputError, match=r"^text 1: token '<\|im_start\|>' has id 260, and the .* ends at 259") as error:
        activations(model, texts, [Site("resid", 0)])
    line(error)
    with pytest.raises(InputError, match="text 8: "):
        encode(model, texts, first_row=7)
    with pytest.raises(InputError, match="text 0: a token has id -1"):
        encode(from_model(build("llama"), None), moescope.capture.Encoded.from_ids([[-1, 3]]))
    model.module.resize_token_embeddings(261)
    assert encode(model, texts)[1].max() == 260


def test_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "tiny")
    size = sum(p.numel() for p in build("llama", head=True).parameters()) * 4
    monkeypatch.setattr("moescope.models.fit.available_memory", lambda: int(0.8 * size))
    with pytest.raises(InputError, match=r"'tiny' does not fit: .* in fp32, and memory has .*; give dtype=bf16, ") as error:
        load(folder)
    line(error)
    assert load(folder, dtype="bf16").dtype == torch.bfloat16
    monkeypatch.setattr("moescope.models.fit.available_memory", lambda: 100)
    with pytest.raises(InputError, match=r"in bf16, and memory has .* free; device_map=auto"):
        load(folder, dtype="bf16")


@pytest.mark.parametrize("stored", ["bf16", "fp16"])
def test_the_precision_is_the_checkpoints(tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[stored]
    build("llama", head=True).to(kind).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    small = load(tmp_path)
    assert (small.dtype, small.stored) == (torch.float32, stored)
    task = moescope.tasks.load_task("certainty=halueval", limit=60)
    result = moescope.circuits(tmp_path, [task], QUICK)
    assert (result.meta["dtype"], result.meta["stored_dtype"], result.meta.get("quantisation")) == ("float32", stored, None)
    assert any(f"weights stored in {stored} were computed in float32" in note for note in result.meta["notes"])
    monkeypatch.setattr("moescope.models.fit.IN_FULL", 100)
    large = load(tmp_path)
    assert (large.dtype, large.stored) == (kind, None)
    assert load(tmp_path, dtype="fp32").dtype == torch.float32


def test_quantising_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.models.fit.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"dtype: int4 needs the package bitsandbytes, .* pip install bitsandbytes") as error:
        load(save_tiny(tmp_path / "tiny"), dtype="int4")
    line(error)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_on_the_way_in(tmp_path: Path, dtype: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from moescope.models import random_twin

    plain = build("llama", head=True, hidden_size=64, intermediate_size=128)
    plain.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path, dtype=dtype, head=True, device="cpu")
    assert model.quantisation == f"bitsandbytes {dtype}"
    assert model.sites() == from_model(plain, None).sites()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    exact = plain.model.layers[0].self_attn.q_proj(x)
    coded = model.module.get_submodule("model.layers.0.self_attn.q_proj")(x.to(model.dtype)).float()
    assert 1e-4 < (coded - exact).norm() / exact.norm() < {"int8": 0.03, "int4": 0.15}[dtype]
    twin = random_twin(model)
    assert np.isfinite(activations(twin, ["a text"], [Site("resid", 3)])).all()
    model.module.save_pretrained(tmp_path / "quantised")
    tiny_tokenizer().save_pretrained(tmp_path / "quantised")
    again = load(tmp_path / "quantised", device="cpu")
    assert again.quantisation == model.quantisation
    with pytest.raises(InputError, match="are quantised already"):
        load(tmp_path / "quantised", dtype="int4")


def test_arrays_beyond_memory_are_kept_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = from_model(build("llama"), tiny_tokenizer())
    texts, sites = ["one", "two words", "three of them"], list(from_model(build("llama"), None).sites("resid"))
    inside = activations(model, texts, sites)
    assert not isinstance(inside, np.memmap)
    monkeypatch.setattr(memory, "available_memory", lambda: 64)
    with pytest.warns(UserWarning, match="activations: .* more than memory has room for; kept in a temporary file in"):
        outside = activations(model, texts, sites)
    assert isinstance(outside, np.memmap)
    np.testing.assert_array_equal(outside, inside)
    with pytest.raises(InputError, match=r"has no room .* name a larger folder in TMPDIR") as error:
        memory.empty_array(2**40, 2**10, "activations")
    line(error)


def test_a_study_beyond_memory_is_the_same_study(monkeypatch: pytest.MonkeyPatch) -> None:
    task = moescope.tasks.load_task("certainty=halueval", limit=60)
    model = from_model(build("llama"), tiny_tokenizer())
    inside = moescope.circuits(model, [task], QUICK)
    monkeypatch.setattr(memory, "available_memory", lambda: 64)
    with pytest.warns(UserWarning, match="kept in a temporary file"):
        outside = moescope.circuits(model, [task], QUICK)
    assert outside.circuits == inside.circuits
    np.testing.assert_equal([c.measured for c in outside.claims], [c.measured for c in inside.claims])
    assert any("kept in a temporary file" in note for note in outside.meta["notes"])
    assert not any("temporary file" in note for note in inside.meta["notes"])


def test_what_a_container_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 150\n")
    assert list(memory._container(tmp_path)) == [250]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(memory._container(tmp_path)) == []
    assert 0 < memory.available_memory() < 2**50


def test_the_models_of_the_api_and_the_library_are_one() -> None:
    assert isinstance(moescope.load_model((build("llama"), tiny_tokenizer())), LoadedModel)
