"""Results shown: the claims table (claims), the figures (registry), and one HTML page that opens offline (html)."""

import contextlib
import os
import sys

# A notebook tells the programs that it starts to draw with its own backend (MPLBACKEND=module://matplotlib_inline…). Where that
# is not installed matplotlib cannot even be imported, so it is told afterwards; the figures here need none.
_backend = os.environ.get("MPLBACKEND")
if _backend is not None and "matplotlib" not in sys.modules:
    del os.environ["MPLBACKEND"]
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = _backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _backend
