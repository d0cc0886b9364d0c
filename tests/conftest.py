"""Before any test module is imported: without a GPU, Triton kernels run in Triton's interpreter; the server's tests need its
extra.

Triton reads the variable when it is imported, which transformers does by itself.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if find_spec("fastapi") is None or find_spec("prometheus_client") is None:
    collect_ignore = [f"test_serve_{part}.py" for part in ("api", "cards", "edits", "hostile", "live", "schema")]
