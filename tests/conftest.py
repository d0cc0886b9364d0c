"""Before any test module is imported: without a GPU, Triton kernels run in Triton's interpreter.

Triton reads the variable when it is imported, which transformers does by itself.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
