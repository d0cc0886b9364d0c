"""Executes the notebooks of `examples/` and keeps their outputs.

python tools/notebooks.py [NAME …]     # own-data, own-model, vllm-trace, convert; all by default

Each runs in a folder of its own beside copies of the scripts of `examples/`, without a network, and is written back only if
every cell ran; warnings and progress are not kept.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SECONDS = 600
"""that a cell may take on a machine that others use; each notebook takes less than 60 of one core"""


def executed(notebook: Path, folder: Path) -> Any:
    """The notebook with the outputs of a run in ``folder``, which is given what `examples/` holds besides.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        nbclient.exceptions.CellTimeoutError: one took longer than :data:`SECONDS`.
    """
    for script in EXAMPLES.glob("*.py"):
        shutil.copy(script, folder)
    found = nbformat.read(notebook, as_version=4)
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(found, timeout=SECONDS, kernel_name="python3", coalesce_streams=True, resources=where)
    client.execute(env={**os.environ, **quiet, "PYTHONPATH": str(ROOT / "src")})
    for cell in found.cells:
        cell.get("metadata", {}).pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _passing(output)]
    return found


def _passing(output: Any) -> bool:
    """Whether it is of the run and not of its result: a warning, or how far it was."""
    shown = output.get("data", {})
    return bool(output.get("name") == "stderr" or (output.output_type == "display_data" and set(shown) == {"text/plain"}))


if __name__ == "__main__":
    chosen = [EXAMPLES / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(EXAMPLES.glob("*.ipynb"))
    for notebook in chosen:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with tempfile.TemporaryDirectory() as folder:
            found = executed(notebook, Path(folder))
        nbformat.write(found, notebook)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{notebook.name}: {notebook.stat().st_size / 1000:.0f} kB, {took:.0f} s of one core")
