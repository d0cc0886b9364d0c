"""Routing traces on disk: a folder of safetensors shards and a ``manifest.json``, written last.

Each shard holds whole sequences in the order given. Until the manifest is there the store is unfinished: it can be resumed,
but not read. Token ids, from which the text can be read, are in it only if the trace was made with them. A digest of each
shard's prompts is: it tells whether a guessed text was among them, and no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moescope.capture.encode import encode
from moescope.capture.manifest import FINISHED, UNFINISHED, Shard, chain, check_contents, check_shard
from moescope.capture.spread import Progress
from moescope.errors import InputError
from moescope.files.atomic import write_atomic
from moescope.files.folder import healed, output, settled, system_errors, whole_folder
from moescope.files.remote import local, publish
from moescope.routing.capture import PromptLike, trace_prompts
from moescope.routing.load import holds_load
from moescope.routing.manifest import COLUMNS, FORMAT, TraceManifest
from moescope.routing.place import beside, check_trace_target, files_of, put_trace
from moescope.routing.trace import RoutingTrace, TracedSequence, check_same_model

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class TraceStore:
    """A store that is being written; made by :meth:`create` or :meth:`resume`. As a context manager it finishes itself on
    leaving without an error."""

    def __init__(self, path: Path, manifest: TraceManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, path: str | Path, settings: dict[str, Any] | None = None) -> TraceStore:
        """Begin a store.

        Raises:
            InputError: there is one already, finished or not.
        """
        folder = local(path)
        _refuse_existing(folder)
        store = cls(folder, TraceManifest(settings=settings or {}))
        store.manifest.write(folder / UNFINISHED)
        return store

    @classmethod
    def resume(cls, path: str | Path) -> TraceStore:
        """Go on writing: an unfinished store after a kill, or a finished one to append to.

        A shard that the kill cut short is not part of the store and is written anew.

        Raises:
            InputError: there is no store, or a shard of it is missing, truncated or of another trace.
        """
        folder = local(path)
        name = UNFINISHED if (folder / UNFINISHED).exists() else FINISHED
        if not (folder / name).exists():
            raise InputError(f"{folder}: there is no store to resume")
        manifest = TraceManifest.read(folder / name)
        for shard in manifest.shards:
            check_shard(folder, shard, manifest.fingerprint)
        # from here on the store is unfinished again: its manifest would not name what is being added
        manifest.write(folder / UNFINISHED)
        (folder / FINISHED).unlink(missing_ok=True)
        return cls(folder, manifest)

    def __len__(self) -> int:
        """Sequences in whole shards."""
        return len(self.manifest.sequences)

    def append(self, trace: RoutingTrace, prompts_sha256: str = "") -> None:
        """Add a trace as one shard.

        Raises:
            InputError: the trace is of another model, has other columns, or is not in order; the disk is full.
        """
        trace.validate(f"trace for {self.path}")
        columns = tuple(name for name in COLUMNS if getattr(trace, name) is not None)
        if self.manifest.shards:
            head = replace(trace, layers=self.manifest.layers, n_experts=self.manifest.n_experts, meta=self.manifest.meta)
            check_same_model(head, trace, f"trace for {self.path}")
            if columns != self.manifest.columns:
                raise InputError(f"{self.path}: holds {', '.join(self.manifest.columns)}, but the trace {', '.join(columns)}")
        else:
            facts = {"layers": trace.layers, "n_experts": trace.n_experts, "columns": columns, "meta": trace.meta}
            self.manifest = replace(self.manifest, **facts)  # type: ignore[arg-type]
        arrays = {name: np.ascontiguousarray(getattr(trace, name)) for name in columns}
        number = len(self.manifest.shards)
        note = {"fingerprint": self.manifest.fingerprint, "format": FORMAT, "number": str(number)}
        data = save(arrays, {"moescope": json.dumps(note)})
        name = f"shard-{number:05d}.safetensors"
        size = write_atomic(self.path / name, [data])
        shard = Shard(name, len(trace.sequences), len(trace), size, hashlib.sha256(data).hexdigest())
        self.manifest = replace(
            self.manifest,
            shards=(*self.manifest.shards, shard),
            sequences=(*self.manifest.sequences, *trace.sequences),
            prompts_sha256=chain(self.manifest.prompts_sha256, prompts_sha256),
        )
        self.manifest.write(self.path / UNFINISHED)

    def finish(self) -> None:
        """Write the manifest; from now on the store can be read."""
        self.manifest.write(self.path / FINISHED)
        with system_errors(self.path):
            (self.path / UNFINISHED).unlink(missing_ok=True)
        publish(self.path)

    def __enter__(self) -> TraceStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self.finish()


def _refuse_existing(folder: Path) -> None:
    if any((folder / name).exists() for name in (FINISHED, UNFINISHED)) or list(folder.glob("shard-*.safetensors")):
        raise InputError(f"{folder}: a store is there already; resume it, delete it or choose another folder")


def save_trace(trace: RoutingTrace, path: str | Path, *, overwrite: bool = False, shard_tokens: int = 1 << 20) -> None:
    """Write a trace as a store of shards of about ``shard_tokens`` tokens (whole sequences).

    Args:
        overwrite: put it in the place of a trace that is there, once it is written.

    Raises:
        InputError: there is a store that may not be replaced, the trace is not valid, or the disk is full.
    """
    trace.validate()
    with output(settled(path)):
        folder = check_trace_target(path, overwrite=overwrite)
        if not overwrite:
            _refuse_existing(folder)
        with whole_folder(folder, own=files_of(folder)) as draft, TraceStore.create(draft) as store:
            for first, stop in _runs(trace.lengths, shard_tokens):
                store.append(trace.select(range(first, stop)))


def _runs(lengths: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """Consecutive sequences of together at most ``budget`` tokens, or one longer one."""
    runs, first, tokens = [], 0, 0
    for number, length in enumerate(lengths.tolist()):
        if tokens and tokens + length > budget:
            runs.append((first, number))
            first, tokens = number, 0
        tokens += length
    return [*runs, (first, len(lengths))]


def load_trace(path: str | Path, *, verify: bool = True) -> RoutingTrace:
    """Read a store, checked: every shard's checksum (``verify``), shapes, and that every id is an expert of its layer.

    Raises:
        InputError: the store is missing, unfinished, truncated or damaged; names the file, or row, layer and id.
    """
    folder = local(path)
    healed(settled(folder))
    if (folder / UNFINISHED).exists():
        raise InputError(f"{folder}: the trace is unfinished, its writing was cut short; resume it with the same command")
    if holds_load(folder):
        raise InputError(f"{folder}: holds counts of experts without tokens, and is no trace; record tokens")
    if not (folder / FINISHED).exists():
        raise InputError(f"{folder}: not a routing trace, it has no {FINISHED}")
    manifest = TraceManifest.read(folder / FINISHED)
    parts = []
    start = 0
    for shard in manifest.shards:
        check_shard(folder, shard, manifest.fingerprint)
        if verify:
            check_contents(folder, shard)
        names = manifest.sequences[start : start + shard.texts]
        start += shard.texts
        parts.append(_read_shard(folder / shard.file, manifest, names))
    if not parts:
        raise InputError(f"{folder}: the trace is empty")
    return RoutingTrace.concat(parts)


def trace_of(trace: RoutingTrace | str | Path) -> RoutingTrace:
    """A trace in memory, or the one that a folder holds, checked.

    Raises:
        InputError: as :func:`load_trace`, and where arrays do not fit together.
    """
    return trace.validate() if isinstance(trace, RoutingTrace) else load_trace(trace)


def _read_shard(path: Path, manifest: TraceManifest, sequences: Sequence[TracedSequence]) -> RoutingTrace:
    try:
        with safe_open(str(path), "numpy") as file:
            arrays = {name: file.get_tensor(name) if name in manifest.columns else None for name in COLUMNS}
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged shard ({error}); delete the store and trace again") from error
    facts: dict[str, Any] = {"layers": manifest.layers, "n_experts": manifest.n_experts, "meta": manifest.meta}
    return RoutingTrace(sequences=tuple(sequences), **facts, **arrays).validate(str(path))  # type: ignore[arg-type]


def trace_to_store(
    model: LoadedModel,
    prompts: Sequence[PromptLike],
    path: str | Path,
    *,
    overwrite: bool = False,
    shard_prompts: int = 64,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """:func:`~moescope.routing.trace_prompts` to a store, ``shard_prompts`` prompts at a time; goes on where it was stopped.

    Args:
        overwrite: put it in the place of another trace that is there, once it is whole.
        options: those of :func:`~moescope.routing.trace_prompts`.

    Raises:
        InputError: a finished store is there, or an unfinished one of another model, other prompts or other options, and
            ``overwrite`` is off.
    """
    if not prompts:
        raise InputError("none were given", "prompts")
    folder = check_trace_target(path, overwrite=overwrite)
    settings = {"max_tokens": max_tokens, "shard_prompts": shard_prompts, **{k: _plain(v) for k, v in options.items()}}
    parts = [prompts[start : start + shard_prompts] for start in range(0, len(prompts), shard_prompts)]
    place, store = folder, None
    if overwrite and files_of(folder):
        for place in (folder, beside(folder)):
            with contextlib.suppress(InputError):  # begun, but not this trace
                store = _begun(place, model, parts, settings)
            if store is not None:
                break
        else:
            shutil.rmtree(place, ignore_errors=True)  # of other settings, and hidden under a name that is ours
    else:
        store = _begun(folder, model, parts, settings)
    if store is None:
        _refuse_existing(place)
    done = 0 if store is None else len(store)
    left = parts[-(-done // shard_prompts) :]
    many = 1 if model.spread is None else 2 * model.spread.engine.processes  # shards at a time: work for every process
    for some in (left[start : start + many] for start in range(0, len(left), many)):
        together = [prompt for part in some for prompt in part]
        trace = trace_prompts(model, together, max_tokens=max_tokens, apart=shard_prompts, **options)
        if store is None:  # not before: what cannot be traced leaves nothing behind
            store = TraceStore.create(place, settings)
        for start, part in zip(range(0, len(together), shard_prompts), some, strict=True):
            own = trace if len(some) == 1 else trace.select(range(start, start + len(part)))
            store.append(own, _digest(model, part, max_tokens))
            if progress is not None:
                progress(len(store), len(prompts))
    assert store is not None
    store.finish()
    put_trace(folder, place)


def _begun(
    folder: Path, model: LoadedModel, parts: Sequence[Sequence[PromptLike]], settings: dict[str, Any]
) -> TraceStore | None:
    """The unfinished store in ``folder``, if it is of this model, these prompts and these settings."""
    if not (folder / UNFINISHED).exists():
        return None
    store = TraceStore.resume(folder)
    if store.manifest.settings != settings:
        raise InputError(f"{folder}: the unfinished trace was begun with other options; use the same, or another folder")
    if store.manifest.shards and store.manifest.fingerprint != model.fingerprint:
        raise InputError(f"{folder}: the unfinished trace is of another model; use the same, or another folder")
    done = parts[: len(store.manifest.shards)]
    digest = reduce(chain, (_digest(model, part, settings["max_tokens"]) for part in done), "")
    named = tuple(TracedSequence(p.id, p.category, p.group) for part in done for p in part)
    if digest != store.manifest.prompts_sha256 or named != store.manifest.sequences:
        raise InputError(f"{folder}: the unfinished trace is of other prompts; use the same, or another folder")
    return store


def _digest(model: LoadedModel, prompts: Sequence[PromptLike], max_tokens: int | None) -> str:
    return encode(model, [prompt.text for prompt in prompts], max_tokens=max_tokens).sha256


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
