"""From what a user calls a model to a folder on this machine that is safe to read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

from moescope.errors import InputError
from moescope.files.bundle import check_model
from moescope.files.names import plain_name
from moescope.files.parse import parse_json
from moescope.files.remote import refuse
from moescope.models import gguf
from moescope.zoo import PACKAGED, embedded, packaged

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")


PROCESSOR_FILE = "preprocessor_config.json"
"""how a vision encoder is given its images"""
MODEL_FILES = ("config.json", "adapter_config.json")
"""By either, a folder is known as a model's or an adapter's."""


@dataclass(frozen=True)
class Source:
    """Where a model lies: its name for reports, the folder, and the commit it comes from (None: not from a Hub)."""

    name: str
    folder: Path
    revision: str | None = None

    @property
    def quantisation(self) -> str | None:
        """How the weights were quantised before they were read; None where they were not."""
        return gguf.quantisation(self.folder)

    @property
    def mlp_bits(self) -> float | None:
        """Bits that a weight of the MLPs took, scales included, before they were read as floats; None where they were none."""
        return gguf.mlp_bits(self.folder)


def find_source(model: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Source:
    """The folder of an embedded or packaged name, a local folder (plain, or a Hub cache's ``models--org--name``), a GGUF
    file or a folder that holds one (see :mod:`moescope.models.gguf`), or a Hub id.

    A Hub id is looked up in the local Hub cache when the Hub cannot be reached. Only configs, tokenizer files and
    safetensors of the repository's top folder are fetched (and ``*.py`` with ``trust_remote_code``).

    Raises:
        InputError: nothing by that name; names the embedded models and the mend.
    """
    text = str(model)
    models = embedded()
    if text in models:
        _no_revision(text, "an embedded model", revision)
        return Source(text, models[text])
    if text in PACKAGED:
        _no_revision(text, "a model of an installed package", revision)
        parts = packaged(text)
        return Source(text, parts[0] if parts[0].is_dir() else gguf.converted(parts, text, sha256=PACKAGED[text].sha256))
    refuse(text, "copy the model's folder to this machine, or give its Hub id")
    folder = Path(os.path.expanduser(text))
    try:
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except OSError as error:
        raise InputError(f"model folder {text!r} cannot be read: {error.strerror}") from error
    if is_file and folder.suffix.lower() == gguf.SUFFIX:
        _no_revision(text, "a local file", revision)
        return Source(folder.stem, gguf.converted([folder], folder.stem))
    if is_file:
        raise InputError(f"model {text!r} is a file that is no GGUF: give the folder that holds it and its config.json")
    if is_folder:
        return _local(text, folder, revision)
    if isinstance(model, Path) or folder.is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1:
        raise InputError(f"model folder {text!r} does not exist: give a local folder or {_names()}")
    return _from_hub(text, revision, trust_remote_code)


def _local(text: str, folder: Path, revision: str | None) -> Source:
    if (folder / "config.json").exists() or not (folder / "snapshots").is_dir():
        _no_revision(text, "a local folder", revision)
        snapshot = folder.absolute()
        if not (folder / "config.json").exists() and (file := gguf.only_file(folder)):
            return Source(file.stem, gguf.converted([file], file.stem))
        if snapshot.parent.name == "snapshots":
            return Source(_hub_name(snapshot.parents[1]), folder, snapshot.name)
        return Source(folder.resolve().name, folder)
    # the Hub cache's own layout: refs/NAME holds a commit, snapshots/COMMIT the files
    wanted = revision or "main"
    ref = folder / "refs" / wanted
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else wanted
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        have = sorted(path.name for path in (folder / "snapshots").iterdir())
        raise InputError(f"model folder {text!r} has no revision {wanted!r}: it has {', '.join(have) or 'none'}")
    return Source(_hub_name(folder), snapshot, commit)


def _hub_name(folder: Path) -> str:
    """``org/name`` of a Hub cache's ``models--org--name``."""
    return folder.name.removeprefix("models--").replace("--", "/")


def _no_revision(text: str, what: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{revision!r} does not apply: {text!r} is {what}; leave it out", "revision")


def _names() -> str:
    return f"an embedded model ({', '.join(embedded()) or 'none in this installation'})"


def _from_hub(name: str, revision: str | None, trust_remote_code: bool) -> Source:
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", *(["*.py"] if trust_remote_code else [])]
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*", "consolidated*.safetensors"],
        )
    except GatedRepoError as error:
        raise InputError(f"model {name!r} is gated on the Hub: accept its terms there and log in with a token") from error
    except RevisionNotFoundError as error:
        raise InputError(f"model {name!r} has no revision {revision!r} on the Hub") from error
    except (RepositoryNotFoundError, huggingface_hub.errors.HFValidationError) as error:
        raise InputError(f"model {name!r} is not known: give a local folder, {_names()} or the id of a Hub model") from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model {name!r} is not embedded, no local folder and not in the local Hub cache, and the Hub cannot be "
            f"reached ({type(error).__name__}): give a local folder or {_names()}"
        ) from error
    except Exception as error:
        # the HTTP library's own errors share no base class with the above and differ between versions of it
        if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
            raise
        raise InputError(
            f"model {name!r}: the Hub cannot be reached ({type(error).__name__}): give a local folder or {_names()}"
        ) from error
    return Source(name, Path(folder), Path(folder).name)


def check_folder(source: Source) -> None:
    """Make sure that a model folder's config, weights and tokenizer are there, whole and no pickle.

    Only the headers of the safetensors files are read, which is enough to notice a truncated or garbled file; all of them where
    the folder is a result of moescope convert, which has their checksums.

    Raises:
        InputError: names the file and the mend.
    """
    folder = source.folder
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InputError(f"model folder {str(folder)!r} cannot be read: {error.strerror}") from error
    if "config.json" not in names:
        raise InputError(f"model folder {str(folder)!r} has no config.json: give a folder written by save_pretrained")
    config = _json(folder / "config.json")
    if not isinstance(config, dict) or not config.get("model_type"):
        raise InputError(f"{folder / 'config.json'} names no model_type: give a Hugging Face model's config")
    for file in weight_files(folder):
        _check_header(file)
    check_model(folder)
    if not has_tokenizer(folder) and not (folder / PROCESSOR_FILE).is_file():
        raise InputError(
            f"model folder {str(folder)!r} has no tokenizer (tokenizer.json): save the model's tokenizer beside its weights"
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's file lies in the folder."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in a folder, in order.

    Raises:
        InputError: there are none, or one is missing.
    """
    names = {path.name for path in folder.iterdir()}
    if "model.safetensors" in names:
        return [folder / "model.safetensors"]
    if "model.safetensors.index.json" in names:
        index = folder / "model.safetensors.index.json"
        shards = _json(index)
        weight_map = shards.get("weight_map") if isinstance(shards, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map: the download or save was cut short, fetch the model again")
        files = sorted({str(name) for name in weight_map.values()})
        for name in files:
            try:
                plain_name(name)
            except ValueError as error:
                raise InputError(f"{index} names a shard outside its folder ({error}): fetch the model again") from error
            if name not in names:
                raise InputError(f"model folder {str(folder)!r} lacks the shard {name}: fetch the model again")
        return [folder / name for name in files]
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise InputError(
            f"{folder / pickles[0]} is a pickle and is never read; convert it with transformers' save_pretrained where you "
            "trust its author, or take a copy with model.safetensors"
        )
    other = sorted(name for name in names if name.endswith(".safetensors"))
    hint = f"; rename {other[0]} if it holds them" if other else ""
    raise InputError(f"model folder {str(folder)!r} has no weights: model.safetensors or its index is missing{hint}")


def _check_header(file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as handle:
            if not list(handle.keys()):
                raise InputError(f"{file} holds no tensors: fetch or save the model again")
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is corrupt or cut short ({error}): fetch or save the model again") from error


def _json(file: Path) -> Any:
    try:
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}): fetch or save the model again") from error
