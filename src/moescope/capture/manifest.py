"""What a store of activations says about itself, and the checks that its shards are what it says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from moescope.capture.position import Position, check_position, skips_special
from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.files.names import plain_name
from moescope.files.parse import parse_object
from moescope.files.seal import seal_holds, sealed_json
from moescope.study.settings import at_least, between, read_record
from moescope.types import Site, is_kind

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from moescope.models import LoadedModel

FORMAT = "moescope-activations-2"
FINISHED = "manifest.json"
UNFINISHED = "unfinished.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shard:
    """One safetensors file: per site a tensor (vectors, D), and ``offsets`` int64 (texts + 1,)."""

    file: str
    texts: Annotated[int, between(0, 2**40, open_low=False)]
    vectors: Annotated[int, at_least(0)]
    size: Annotated[int, at_least(0)]
    """bytes"""
    sha256: str

    def __post_init__(self) -> None:
        plain_name(self.file)


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``. ``unfinished.json`` is the same while shards are being added."""

    model: str
    revision: str | None
    fingerprint: str
    model_dtype: str
    sites: tuple[str, ...]
    widths: Annotated[tuple[int, ...], between(0, 2**31)]
    dtype: str
    position: str | int
    skip_special: bool
    special_tokens: str
    max_tokens: int | None
    texts_sha256: str
    """chained over the shards: sha256 of the digest so far and that of the shard's token ids"""
    shards: tuple[Shard, ...] = field(default=())
    format: str = FORMAT
    chat: bool = False
    """texts were put into the model's chat template"""

    def __post_init__(self) -> None:
        for site in self.sites:
            parse_site(site)
        if len(self.widths) != len(self.sites) or self.dtype not in DTYPES:
            raise ValueError(f"{len(self.sites)} sites, {len(self.widths)} widths and dtype {self.dtype!r}")

    @property
    def texts(self) -> int:
        return sum(shard.texts for shard in self.shards)

    def add(self, shard: Shard, encoded_sha256: str) -> Manifest:
        """This manifest with one more shard."""
        return replace(self, shards=(*self.shards, shard), texts_sha256=chain(self.texts_sha256, encoded_sha256))

    @classmethod
    def describe(
        cls,
        model: LoadedModel,
        sites: Sequence[Site],
        position: Position,
        dtype: str,
        skip_special: bool | None,
        special_tokens: str | None,
        max_tokens: int | None,
    ) -> Manifest:
        """The manifest of an empty store.

        Raises:
            InputError: no site, one that the model lacks, or an unknown position or dtype.
        """
        if dtype not in DTYPES:
            raise InputError(f'dtype: "{dtype}" is not one of {", ".join(DTYPES)}')
        if not sites:
            raise InputError("sites: none were given")
        check_position(position)
        return cls(
            model=model.name,
            revision=model.revision,
            fingerprint=model.fingerprint,
            model_dtype=str(model.dtype),
            sites=tuple(str(site) for site in sites),
            widths=tuple(model.width(site) for site in sites),
            dtype=dtype,
            position=position,
            skip_special=skips_special(position, skip_special),
            special_tokens=special_tokens or model.reading.special_tokens,
            chat=model.reading.chat,
            max_tokens=max_tokens,
            texts_sha256="",
        )

    def check_model(self, model: LoadedModel, folder: Path) -> None:
        """Raise unless the store was made with this model, in this dtype.

        Raises:
            InputError: it was not.
        """
        if self.fingerprint != model.fingerprint or self.model_dtype != str(model.dtype):
            raise InputError(
                f"{folder}: the store holds activations of another model ({self.model} in {self.model_dtype}; this is "
                f"{model.name} in {model.dtype}, fingerprint {model.fingerprint}); choose that model or another folder"
            )

    def check_same(self, wanted: Manifest, folder: Path) -> None:
        """Raise unless the store was begun with the settings of ``wanted``.

        Raises:
            InputError: naming the setting that differs.
        """
        for name in ("sites", "dtype", "position", "skip_special", "special_tokens", "chat", "max_tokens"):
            here, there = getattr(wanted, name), getattr(self, name)
            if here != there:
                raise InputError(
                    f"{folder}: the store was made with {name} = {there}, not {here}; use the same setting or another folder"
                )

    def write(self, path: Path) -> None:
        write_manifest(self, path)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            InputError: it is not there, not JSON, or of another format or version.
        """
        return read_manifest(cls, path, f"not a store of format {FORMAT}; choose another folder", "collect it")


M = TypeVar("M")


def parse_site(text: str) -> Site:
    """The site that ``str(site)`` gave.

    Raises:
        ValueError: it is of no such form.
    """
    kind, _, layer = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not is_kind(kind) or not re.fullmatch("[0-9]{1,6}", layer):
        raise ValueError(f"{str(text)[:40]!r} is no site")
    return Site(kind, int(layer))


def write_manifest(manifest: DataclassInstance, path: Path) -> None:
    """Write a dataclass as JSON with its checksum, whole or not at all."""
    write_atomic(path, sealed_json(asdict(manifest)))


def read_manifest(kind: type[M], path: Path, refusal: str, again: str) -> M:
    """The dataclass ``kind``, with a default ``format``, that :func:`write_manifest` wrote.

    Args:
        refusal: what is said of a file of another format.
        again: what mends a damaged store.

    Raises:
        InputError: it is not there, not JSON, or of another format or version.
    """
    try:
        data = parse_object(path.read_bytes())
        if data.get("format") != kind.format:  # type: ignore[attr-defined]
            raise InputError(f"{path}: format {data.get('format')!r} is not {kind.format}: {refusal}")  # type: ignore[attr-defined]
        if not seal_holds(path):
            raise ValueError("its sha256 is not the one in it")
        data.pop("seal", None)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged manifest ({error}); delete the store and {again} again") from error
    try:
        return read_record(kind, data)
    except ValueError as error:
        raise InputError(f"{path}: damaged manifest ({error}); delete the store and {again} again") from error


def chain(digest: str, addition: str) -> str:
    """The digest of what has been hashed so far and one more part."""
    return hashlib.sha256((digest + addition).encode()).hexdigest()


def check_shard(folder: Path, shard: Shard, fingerprint: str) -> None:
    """Existence, size and header of a shard (cheap; for the contents see :func:`check_contents`).

    Raises:
        InputError: the shard is missing, truncated, damaged, or holds another model's activations.
    """
    path = folder / shard.file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: shard is missing; collect the store again") from error
    if size != shard.size:
        state = "truncated" if size < shard.size else "too long"
        raise InputError(f"{path}: shard is {state} ({size} of {shard.size} bytes); delete the store and collect it again")
    header = shard_header(path)
    if header.get("fingerprint") != fingerprint:
        raise InputError(f"{path}: shard belongs to another model or store; delete the store and collect it again")


def shard_header(path: Path) -> dict[str, Any]:
    """The note in a shard's header."""
    try:
        with safe_open(str(path), "pt") as file:
            return parse_object((file.metadata() or {}).get("moescope", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged shard ({error}); delete the store and collect it again") from error


def check_contents(folder: Path, shard: Shard) -> None:
    """Compare a shard's checksum.

    Raises:
        InputError: the contents are not those that were written.
    """
    path = folder / shard.file
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: shard cannot be read ({error.strerror})") from error
    if digest != shard.sha256:
        raise InputError(f"{path}: corrupt shard (its checksum differs); delete the store and collect it again")
