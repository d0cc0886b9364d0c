"""Where a result comes from: versions, revision, seeds and hashes, so that it can be made again."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from moescope.cluster import LOCAL, Engine
from moescope.models import LoadedModel
from moescope.types import Task

if sys.platform != "win32":
    import resource

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


def versions() -> dict[str, str]:
    """Of python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def machine(engine: Engine = LOCAL) -> dict[str, Any]:
    """What ran: command, processes, versions, revision of moescope, and when."""
    return {
        "command": shlex.join(["moescope", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "moescope" else None,
        "engine": {"name": engine.name, "processes": engine.processes, "shards_elsewhere": engine.elsewhere},
        "versions": versions(),
        "git_revision": git_revision(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def spent() -> dict[str, float]:
    """What the process has used: ``cpu_seconds``, ended children's too, and ``peak_gib``, its largest resident memory."""
    times = psutil.Process().cpu_times()
    cpu = times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return {"cpu_seconds": round(cpu, 1), "peak_gib": round(peak_bytes() / 2**30, 2)}


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":  # what getrusage says holds that of the process which started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
        **texts_of(tasks),
    }


def texts_of(tasks: Sequence[Task]) -> dict[str, Any]:
    """The tasks that were read, by hash."""
    return {
        "tasks": [task.name for task in tasks],
        "data": {task.name: {"source": task.source, "n": len(task), "sha256": task.sha256} for task in tasks},
    }
