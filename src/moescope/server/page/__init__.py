"""The page: HTML, a style and scripts, each served as a file, so that its policy lets nothing run that stands in the HTML."""

from __future__ import annotations

from importlib.resources import files

_KINDS = {".css": "text/css", ".js": "text/javascript"}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Path -> content and media type of all that the page is made of; its style begins with the one that all pages share."""
    here, base = files(__package__), files("moescope.report").joinpath("base.css").read_bytes()
    found = {"/": (here.joinpath("index.html").read_bytes(), "text/html")}
    for part in sorted(here.iterdir(), key=lambda part: part.name):
        kind = _KINDS.get(part.name[part.name.rfind(".") :])
        if kind is not None:
            found[f"/page/{part.name}"] = ((base if kind == "text/css" else b"") + part.read_bytes(), kind)
    return found
