"""GGUF files (llama.cpp's format), dequantised once into a folder that transformers loads like any other.

The folder lies in the cache, under the file's SHA-256; `moescope.json` in it says what the file was. Weights are written as
float32 up to a thousand million of them, as bfloat16 beyond. They are the quantised ones: a result of such a copy is not of the
model that it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from moescope.errors import InputError
from moescope.files.cache import cache
from moescope.files.folder import whole_folder
from moescope.files.hashes import sha256_of
from moescope.files.names import plain_name
from moescope.files.parse import parse_object

SUFFIX = ".gguf"
RECORD = "moescope.json"
_MAGIC = b"GGUF"
_WIDE = 10**9  # weights up to which float32 is kept
_FORMAT = 2
_CHUNK = 1 << 24
_MLP = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.weight")


def only_file(folder: Path) -> Path | None:
    """The GGUF file of a folder without safetensors; None where there is none.

    Raises:
        InputError: there are several, of which one is to be named.
    """
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == SUFFIX)
    if not names or any(path.suffix == ".safetensors" for path in folder.iterdir()):
        return None
    if len(names) > 1:
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        raise InputError(f"model folder {str(folder)!r} holds {len(names)} GGUF files ({shown}): name one of them")
    return folder / names[0]


def converted(parts: Sequence[Path], name: str, *, sha256: str | None = None) -> Path:
    """The folder with the dequantised copy of a GGUF file, made where it is not in the cache yet, or not whole.

    Args:
        parts: the file, or the pieces that make it up, in order.
        name: for messages, and the start of the folder's name.
        sha256: what the whole must hash to, where that is known.

    Raises:
        InputError: it is no GGUF, cut short, one of a series, of an architecture that transformers cannot read, or the
            package ``gguf`` is missing; the cache cannot be written to.
    """
    _check(parts, name)
    if sha256 is not None and _whole(_place(sha256)):
        return _place(sha256)
    found = sha256_of(parts[0]) if len(parts) == 1 else _digest(parts)
    if sha256 is not None and found != sha256:
        raise InputError(f"model {name!r}: its pieces do not make up the file with SHA-256 {sha256}; install its package again")
    folder = _place(found)
    if _whole(folder):
        return folder
    if find_spec("gguf") is None:
        raise InputError(f"model {name!r} is a GGUF file, which takes a package to read: pip install 'moescope[gguf]'")
    with whole_folder(folder, own=[path.name for path in folder.iterdir()] if folder.is_dir() else ()) as draft:
        if len(parts) == 1:
            _convert(parts[0].resolve(), draft, name, found)
            return folder
        joined = draft / f"joined{SUFFIX}"
        with joined.open("wb") as file:
            for piece in _chunks(parts):
                file.write(piece)
        _convert(joined, draft, name, found)
        joined.unlink()
    return folder


def quantisation(folder: Path) -> str | None:
    """How the weights of a converted folder were quantised, as in ``"Q4_1 79 %, Q8_0 21 %"`` (shares of the weights); None
    for any other folder."""
    try:
        record = parse_object((folder / RECORD).read_bytes())
        return str(record["quantisation"]) if record["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mlp_bits(folder: Path) -> float | None:
    """Bits that a weight of the MLPs takes in the file that a folder was converted from, scales included; None for any other
    folder, and where the file has no dense MLP."""
    try:
        record = parse_object((folder / RECORD).read_bytes())
        found = record["mlp_bits"] if record["format"] == _FORMAT else None
        return float(found) if found is not None and 0 < float(found) <= 64 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _whole(folder: Path) -> bool:
    """Whether a copy is there and all of its files are as they were written."""
    if quantisation(folder) is None:
        return False
    try:
        record = parse_object((folder / RECORD).read_bytes())
        files = record["files"]
        return "mlp_bits" in record and all(sha256_of(folder / plain_name(name)) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _place(sha256: str) -> Path:
    return cache() / "gguf" / sha256[:32]


def _check(parts: Sequence[Path], name: str) -> None:
    """What can be seen without reading the file."""
    for part in parts:
        if not part.is_file():
            raise InputError(f"model {name!r}: {part} is missing; install its package again")
    try:
        with parts[0].open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"{parts[0]} cannot be read: {error.strerror}") from error
    if start != _MAGIC:
        raise InputError(f"{parts[0]} is no GGUF file (it begins with {start!r}): fetch it again")
    if series := re.search(r"-(\d{5})-of-(\d{5})\.gguf$", parts[0].name, re.IGNORECASE):
        raise InputError(f"{parts[0]} is one of {int(series[2])} files: join them first (llama-gguf-split --merge)")


def _chunks(parts: Sequence[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield piece


def _digest(parts: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for piece in _chunks(parts):
        digest.update(piece)
    return digest.hexdigest()


def _convert(file: Path, draft: Path, name: str, sha256: str) -> None:
    options: dict[str, Any] = {"gguf_file": file.name}
    try:
        counts, mlp = _tensors(file)
        dtype = torch.float32 if sum(counts.values()) <= _WIDE else torch.bfloat16
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars ask nobody
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
            auto: Any = transformers.AutoModelForCausalLM
            model, report = auto.from_pretrained(file.parent, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # a garbled file can break any of three libraries anywhere; tokenizers raises bare Exceptions
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(
            f"{name}: the GGUF file {file.name} cannot be read ({lines[0][:200]}): it is cut short, or transformers "
            f"{transformers.__version__} does not know its architecture"
        ) from error
    if report["missing_keys"]:
        lost = sorted(report["missing_keys"])
        raise InputError(f"{name}: the GGUF file lacks {len(lost)} tensors that its architecture asks for ({lost[0]})")
    # what save_pretrained would refuse: a record of the quantisation that the weights no longer have
    model.hf_quantizer = None
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    model.config._name_or_path = name
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    total = sum(counts.values())
    kinds = [f"{kind} {count / total:.0%}".replace("%", " %") for kind, count in counts.most_common() if count > total / 200]
    made = sorted(path for path in draft.iterdir() if path.is_file() and path.suffix != SUFFIX)
    record = {
        "format": _FORMAT,
        "quantisation": ", ".join(kinds),
        "mlp_bits": mlp,
        "sha256": sha256,
        "dtype": str(dtype).removeprefix("torch."),
        "files": {path.name: sha256_of(path) for path in made},
    }
    (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _tensors(file: Path) -> tuple[Counter[str], float | None]:
    """Weights by the type that they are stored in, and the bits of a weight of the dense MLPs."""
    import gguf

    counts: Counter[str] = Counter()
    bits = weights = 0
    for tensor in gguf.GGUFReader(file).tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
        if _MLP.fullmatch(tensor.name):
            bits += 8 * int(tensor.n_bytes)
            weights += int(tensor.n_elements)
    return counts, bits / weights if weights else None
