"""Adam that takes row-sparse gradients as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moescope.kernels.adam import adam_rows


class RowAdam:
    """Adam (Kingma & Ba 2015) whose step over an expert weight is one pass, without a dense gradient.

    The same update as ``torch.optim.Adam``: an expert without a token has gradient zero and still moves by its momentum.
    With ``lazy`` it does not (torch's SparseAdam): cheaper where few experts are used, but another algorithm.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        lazy: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.betas, self.eps, self.lazy = betas, eps, lazy
        self.steps = 0
        self.first = [torch.zeros_like(p, memory_format=torch.contiguous_format).detach() for p in self.parameters]
        self.second = [torch.zeros_like(first) for first in self.first]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient, and drop the gradients."""
        self.steps += 1
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            grad = parameter.grad
            if grad is None:
                continue
            rows, values = _split(grad)
            if parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64):
                flat = [_matrix(t) for t in (parameter.data, first, second, values)]
                adam_rows(
                    flat[0],
                    flat[1],
                    flat[2],
                    rows,
                    flat[3],
                    lr=lr,
                    betas=self.betas,
                    eps=self.eps,
                    step=self.steps,
                    lazy=self.lazy and rows is not None,
                )
            else:
                self._plain(parameter, first, second, grad.to_dense() if grad.is_sparse else grad, lr)
            parameter.grad = None

    def _plain(self, parameter: Tensor, first: Tensor, second: Tensor, grad: Tensor, lr: float) -> None:
        b1, b2 = self.betas
        first.lerp_(grad, 1 - b1)
        second.mul_(b2).addcmul_(grad, grad, value=1 - b2)
        root = (second / (1 - b2**self.steps)).sqrt_().add_(self.eps)
        parameter.addcdiv_(first, root, value=-lr / (1 - b1**self.steps))


def _split(grad: Tensor) -> tuple[Tensor | None, Tensor]:
    """Rows and their gradients; rows is None for a dense gradient."""
    if not grad.is_sparse:
        return None, grad
    # the kernels' gradients have distinct ascending rows, but autograd forgets that they are coalesced
    rows = grad._indices()[0]
    if bool((rows[1:] > rows[:-1]).all()):
        return rows, grad._values()
    grad = grad.coalesce()
    return grad.indices()[0], grad.values()


def _matrix(tensor: Tensor) -> Tensor:
    """(rows, columns) of any shape, sharing memory."""
    return tensor.reshape(len(tensor), -1) if tensor.dim() > 1 else tensor.reshape(1, -1)
