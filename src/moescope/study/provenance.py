"""Where a result comes from: versions, revision, seeds and hashes, so that it can be made again."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from moescope.models import LoadedModel
from moescope.types import Task

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_PACKAGES = ("moescope", "torch", "transformers", "numpy", "scikit-learn", "pandas")


def git_revision() -> str | None:
    """The commit of moescope's own checkout, with ``+dirty`` for local changes; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        top = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=5
        )
        if top.returncode or not (Path(top.stdout.strip()) / "src/moescope").exists():
            return None
        out = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None


def machine() -> dict[str, Any]:
    """What ran: command, versions, revision of moescope, and when."""
    return {
        "command": shlex.join(["moescope", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "moescope" else None,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        "git_revision": git_revision(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def spent() -> dict[str, Any]:
    """Of the process so far: processor time over all threads, and the most memory it held, where the system tells."""
    facts: dict[str, Any] = {"cpu_seconds": round(time.process_time(), 1)}
    if resource is not None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
        facts["peak_memory_gib"] = round(most / 2 ** (30 if sys.platform == "darwin" else 20), 2)
    return facts


def subject(model: LoadedModel, tasks: Sequence[Task]) -> dict[str, Any]:
    """What was studied: the model and the tasks, by hash."""
    return {
        "model": model.name,
        "model_revision": model.revision,
        "fingerprint": model.fingerprint,
        "architecture": model.config.model_type,
        "layers": model.n_layers,
        "width": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "stored_dtype": model.stored,
        **({} if model.quantisation is None else {"quantisation": model.quantisation}),
        "device": str(model.device),
        "encoding": model.reading.record(model.tokenizer),
        "tasks": [task.name for task in tasks],
        "data": {task.name: {"source": task.source, "n": len(task), "sha256": task.sha256} for task in tasks},
    }
