"""Install torch where this runs: a build for the CPU if there is no NVIDIA GPU, one for CUDA if there is.

    .venv/bin/python tools/torch_build.py install 'torch==2.13.0' --constraint FILE
    .venv/bin/python tools/torch_build.py show

The same requirement means different builds on different machines: the default index serves CUDA builds to Linux, which bring
gigabytes of NVIDIA's libraries, CPU builds to macOS, and a file on disk may be either. So pip is asked first what it would
take. Where that is the wrong kind, uv is asked, which knows where torch's own builds are; it is put into a temporary folder
and not kept. Where that fails too, what pip would take is installed, and its size is said before.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from importlib import metadata
from pathlib import Path

# What a CUDA build of torch brings along, by the start of the distribution's name.
CUDA_PARTS = ("nvidia-", "cuda-", "triton")


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's own tool is here and lists a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def planned(requirement: str, constraint: list[str]) -> list[dict]:
    """What pip would install for `requirement`, one entry of pip's installation report a distribution; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--quiet", "--dry-run", "--report", str(report), *constraint, requirement)
        return json.loads(report.read_text())["install"]


def is_cuda(plan: list[dict]) -> bool:
    """Whether the torch of `plan` is a CUDA build: its local version says which, or else what it brings along."""
    for item in plan:
        if item["metadata"]["name"] == "torch" and "+" in item["metadata"]["version"]:
            return not item["metadata"]["version"].endswith("+cpu")
    return any(item["metadata"]["name"].startswith(CUDA_PARTS) for item in plan)


def download_bytes(plan: list[dict]) -> int | None:
    """The sum of the files' sizes, as their servers tell them; None where one does not tell."""
    total = 0
    for item in plan:
        request = urllib.request.Request(item["download_info"]["url"], method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                total += int(answer.headers["Content-Length"])
        except (OSError, TypeError, ValueError):
            return None
    return total


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def with_uv(backend: str, requirement: str, constraint: list[str]) -> bool:
    """Whether uv could install `requirement` built for `backend`."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            pip("install", "--quiet", *constraint, "--target", folder, "uv")
        except subprocess.CalledProcessError:
            return False
        uv = [str(Path(folder) / "bin" / "uv"), "pip", "install", "--quiet", "--python", sys.executable]
        done = subprocess.run(
            [*uv, "--torch-backend", backend, *constraint, requirement], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        print("note: uv could not bring it: " + " ".join(done.stderr.split())[:300], file=sys.stderr)
    return done.returncode == 0


def install(requirement: str, constraint: list[str]) -> None:
    plan = planned(requirement, constraint)
    if not plan:  # already here
        return
    gpu = has_nvidia_gpu()
    if is_cuda(plan) != gpu:
        kind = "a CUDA build, and there is no NVIDIA GPU" if not gpu else "a CPU build, and there is an NVIDIA GPU"
        print(f"pip would take {kind}: asking uv for another", file=sys.stderr)
        if with_uv("auto" if gpu else "cpu", requirement, constraint):
            return
        size = download_bytes(plan)
        told = f"{size / 1e9:.1f} GB" if size is not None else "size unknown"
        print(f"note: none was found; going on with what pip takes ({len(plan)} files, {told} to download)", file=sys.stderr)
    pip("install", "--quiet", *constraint, requirement)


def disk_bytes(name: str) -> int:
    """The size of an installed distribution's files."""
    files = metadata.files(name) or []
    return sum(path.stat().st_size for path in (Path(file.locate()) for file in files) if path.is_file())


def show() -> None:
    """Print which build is installed, and its size with what it brought along."""
    build = "import torch; print(torch.__version__, 'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU')"
    told = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=True).stdout
    version, kind = told.strip().split(" ", 1)
    names = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
    parts = sorted(name for name in names if name.startswith(CUDA_PARTS))
    size = sum(map(disk_bytes, ["torch", *parts]))
    with_parts = f" with the {len(parts)} packages that it brought" if parts else ""
    print(f"torch {version}, {kind} build, {size / 1e6:,.0f} MB{with_parts}")
    if kind != "CPU" and not has_nvidia_gpu():
        print("note: a CUDA build on a machine without an NVIDIA GPU works, and takes room that a CPU build would not")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("install")
    asked.add_argument("requirement")
    asked.add_argument("--constraint", action="append", default=[], metavar="FILE")
    commands.add_parser("show")
    options = parser.parse_args()
    if options.command == "show":
        show()
        return
    try:
        install(options.requirement, [part for file in options.constraint for part in ("--constraint", file)])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # pip has said why


if __name__ == "__main__":
    main()
