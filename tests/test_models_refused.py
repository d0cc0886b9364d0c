"""Each kind of model that cannot be used gives one clear line, and neither a pickle nor foreign code is ever run unasked."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from moescope.errors import InputError
from moescope.models import from_model, load
from tests.architectures import build, save_tiny, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny llama to spoil."""
    return save_tiny(tmp_path / "tiny")


def line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pth", "model.pt", "weights.ckpt"])
def test_pickles_are_never_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / name)  # a checkpoint that would load

    def read(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", read)
    with pytest.raises(InputError, match=rf"{name} is a pickle and is never read; convert it") as error:
        load(folder)
    line(error)


@pytest.mark.parametrize("keep", [0, 4, 100, -1000])
def test_truncated_weights(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors is corrupt or cut short") as error:
        load(folder)
    line(error)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no weights"),
    ],
)
def test_missing_file(folder: Path, lost: str, message: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert str(folder) in line(error)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_type": "no-such-model"}', '{"model_type": 3}', "\xff"])
def test_garbled_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.json") as error:
        load(folder)
    line(error)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"version": "1.0"}'])
def test_garbled_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="tokenizer") as error:
        load(folder)
    line(error)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("tokenizer_config.json", "model_max_length", "many"),
        ("tokenizer_config.json", "model_max_length", -256),
        ("config.json", "max_position_embeddings", -256),
    ],
)
def test_a_number_of_tokens_that_is_none(folder: Path, file: str, name: str, value: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, name: value}))
    with pytest.raises(InputError, match=f"{name} is {value!r} and must be a number of tokens") as error:
        load(folder)
    assert str(folder / file) in line(error)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"model_type": "llama", "eos_token_id": "one"}'])
def test_what_a_folder_lacks_is_said_beside_a_config_that_cannot_be_read(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"config\.json|has no weights") as error:
        load(folder)
    line(error)


def test_weights_of_another_shape_or_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for change in ({"num_hidden_layers": 5}, {"intermediate_size": 64}, {"model_type": "gpt_neox"}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match="model 'tiny'") as error:
            load(folder)
        line(error)


def test_no_head_in_the_weights(folder: Path) -> None:
    shutil.rmtree(folder)
    build("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    load(folder)
    with pytest.raises(InputError, match="has no language-model head") as error:
        load(folder, head=True)
    line(error)


def test_encoder_decoder(folder: Path) -> None:
    config = transformers.T5Config(vocab_size=260, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    with pytest.raises(InputError, match="'t5' is an encoder-decoder, which is not supported") as error:
        load(folder)
    line(error)
    with pytest.raises(InputError, match="'t5' is an encoder-decoder"):
        from_model(transformers.T5Model(config), tiny_tokenizer())


def test_unreadable_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == folder:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)  # a mode of 0 would not stop root
    with pytest.raises(InputError, match="cannot be read: Permission denied") as error:
        load(folder)
    assert str(folder) in line(error)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission(folder: Path) -> None:
    folder.chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be read") as error:
            load(folder)
        line(error)
    finally:
        folder.chmod(0o700)


def test_paths_that_are_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a file that is no GGUF: give the folder"):
        load(folder / "model.safetensors")
    with pytest.raises(InputError, match="does not exist: give a local folder or an embedded model"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"does not apply: .* is a local folder"):
        load(folder, revision="main")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int7"}, "dtype 'int7' is unknown: choose from auto, fp32, bf16, fp16, int8, int4"),
        ({"device": "toaster"}, "device 'toaster' is unknown"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"device": "cpu", "device_map": "auto"}, "exclude each other"),
    ],
)
def test_options(folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(folder, **options)  # type: ignore[arg-type]
    line(error)


def test_no_config_in_memory() -> None:
    with pytest.raises(InputError, match="'lin' of class Linear has no Hugging Face config"):
        from_model(torch.nn.Linear(2, 2), None, "lin")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {"a": "../elsewhere.safetensors"}}', '{"weight_map"'])
def test_spoilt_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json") as error:
        load(folder)
    line(error)


REMOTE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaModel
Path({marker!r}).touch()
class RemoteConfig(LlamaConfig):
    model_type = "remote"
class RemoteModel(LlamaModel):
    config_class = RemoteConfig
"""


def test_remote_code_runs_only_when_told_and_warns(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "it-ran"
    (folder / "remote.py").write_text(REMOTE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "remote.RemoteConfig", "AutoModel": "remote.RemoteModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "remote", "auto_map": classes}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as error:
            load(folder)
    line(error)
    assert not marker.exists()
    with pytest.warns(UserWarning, match=r"trust_remote_code: Python code that comes with .* will be run"):
        model = load(folder, trust_remote_code=True)
    assert marker.exists()
    assert type(model.body).__name__ == "RemoteModel"
