"""The two gathering operations as products over every row, for a GPU.

With few rows in all they cost less than moving the chosen ones; their shapes do not depend on the choice and nothing waits for
the GPU, so that they can be captured in a graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 4096  # rows in all for each that a token chooses, up to which all are multiplied (run on a GPU with 313)


def capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured: nothing may then be read back to the CPU."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def cheaper(weight: Tensor, index: Tensor) -> bool:
    """Whether to form the product over all rows of ``weight`` (m, d) for the choice ``index`` (B, k)."""
    return weight.is_cuda and (len(weight) <= _ROWS * index.shape[1] or capturing(weight))


def gathered_dot(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """As :func:`moescope.kernels.reference.gathered_dot`; the weight's gradient is dense."""
    return F.linear(x, weight).gather(1, index)


def gathered_sum(scale: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """As :func:`moescope.kernels.reference.gathered_sum`; the weight's gradient is dense."""
    spread = scale.new_zeros(len(index), len(weight)).scatter_add(1, index, scale)  # (B, m); a row may be chosen twice
    return spread @ weight
