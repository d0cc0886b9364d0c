"""Where moescope keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """Where copies and hashes are kept: ``$MOESCOPE_CACHE``, else ``$XDG_CACHE_HOME/moescope``, else ``~/.cache/moescope``."""
    own = os.environ.get("MOESCOPE_CACHE")
    if own:
        return Path(os.path.expanduser(own))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moescope"
