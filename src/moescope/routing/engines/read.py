"""A file of an engine by what it holds."""

from __future__ import annotations

import os
from pathlib import Path

from moescope.errors import InputError
from moescope.files.remote import local
from moescope.routing.engines import arrays, recorder, responses, table
from moescope.routing.engines.build import build
from moescope.routing.engines.model import EngineModel
from moescope.routing.load import RoutingLoad
from moescope.routing.trace import RoutingTrace

_TEXT = {".jsonl", ".ndjson", ".json"}


def import_routing(
    path: str | Path, model: EngineModel, *, prompt_tokens: dict[str, int] | None = None
) -> RoutingTrace | RoutingLoad:
    """Read what an engine recorded, whichever it was: the file's suffix and contents tell.

    Args:
        path: a file, or a folder of ``.npy`` files. Answers of a server (``.jsonl``, packed or not) may be plain objects too,
            with ``id``, ``routed_experts`` and, where known, ``prompt_tokens`` (a number), ``category`` and ``group``.
        prompt_tokens: by request: tokens of its prompt, the rest being generated. Without it, and without usage in the
            file, all tokens count as the prompt's.

    Returns:
        A trace, or where the file counts choices without tokens, a load.

    Raises:
        InputError: names the file, the request or line, and what is wrong; a trace that cannot be routing is refused.
    """
    file, prompts = local(path), prompt_tokens or {}
    suffixes = {s.lower() for s in file.suffixes}
    if os.path.isdir(file):
        return build(list(arrays.requests(file, prompts)), model, str(file), "a folder of arrays")
    if suffixes & _TEXT:
        return build(responses.requests(file, model, prompts), model, str(file), "answers of a server")
    if ".csv" in suffixes:
        return table.load_of(file, model)
    found = arrays.read_arrays(file)
    if recorder.LOGICAL in found or recorder.PHYSICAL in found:
        return recorder.load_of(file, found, model)
    if "topk_ids_of_layer" in found:
        return recorder.tokens_of(file, found, model)
    return build(list(arrays.requests(file, prompts)), model, str(file), "arrays by request")


def import_vllm(path: str | Path, model: EngineModel, *, prompt_tokens: dict[str, int] | None = None) -> RoutingTrace:
    """:func:`import_routing` of what has to be a trace: vLLM's answers, or arrays by request."""
    return _trace(path, import_routing(path, model, prompt_tokens=prompt_tokens))


def import_sglang(path: str | Path, model: EngineModel) -> RoutingTrace:
    """:func:`import_routing` of what has to be a trace: SGLang's answers, or a dump of its recorder in mode ``per_token``."""
    return _trace(path, import_routing(path, model))


def _trace(path: str | Path, found: RoutingTrace | RoutingLoad) -> RoutingTrace:
    if isinstance(found, RoutingLoad):
        raise InputError(f"{path}: counts choices without tokens ({found.meta['source']}), and is no trace; record tokens")
    return found
