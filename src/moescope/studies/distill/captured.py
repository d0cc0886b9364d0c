"""A training step as one CUDA graph: forward, loss, backward and Adam are launched together, without Python in between.

A student is small, so that on a GPU most of an ordinary step is the time that it takes to launch its kernels. Captured steps do
the same arithmetic on batches that are gathered on the GPU; the loss is looked at where a point of the curve is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from moescope.studies.distill.data import ArrayPairs, Block, Pairs, batch_rows
from moescope.studies.distill.optimizer import RowAdam
from moescope.studies.distill.students import Scaling, Student

_WARM_UP = 3  # steps before a capture: libraries allocate in their first ones
_SPARE = 0.5  # of the GPU's free memory, for the data


class Trained(Protocol):
    """What a step needs of a job."""

    student: Student
    optimizer: RowAdam


class Captured:
    """The step of one job on batches that are put into ``x`` and ``y``, float32 (B, d_in) and (B, d_out) on the GPU."""

    def __init__(self, job: Trained, x: Tensor, y: Tensor, *, rough: bool) -> None:
        self.x, self.y, self.rough = x, y, rough
        self.student = job.student
        was, device = job.student.scaling, x.device
        self.scaling = Scaling(was.x_mean.to(device), was.x_scale, was.y_mean.to(device), was.y_scale)
        self.total, self.worst = (torch.zeros((), device=device) for _ in range(2))
        experts = job.student.spec.experts
        self.used = torch.zeros(experts, dtype=torch.bool, device=device) if experts else None
        self.optimizer = job.optimizer
        rate: Any = torch.zeros((), device=device)
        self.rate: Tensor = rate
        self.adam = torch.optim.Adam(job.optimizer.parameters, lr=rate, betas=job.optimizer.betas, fused=True, capturable=True)
        steps = torch.tensor(float(job.optimizer.steps), device=device)
        moments = zip(job.optimizer.parameters, job.optimizer.first, job.optimizer.second, strict=True)
        for parameter, first, second in moments:
            # one count for all would be advanced once by each
            self.adam.state[parameter] = {"step": steps.clone(), "exp_avg": first, "exp_avg_sq": second}
        self._since = 0
        self.graph = self._capture()

    def step(self, rate: float) -> None:
        """One update on what is in ``x`` and ``y``."""
        self.rate.fill_(rate)
        self.graph.replay()
        self.optimizer.steps += 1
        self._since += 1

    def losses(self) -> tuple[float, float, int]:
        """Sum and maximum of the losses since the last call (NaN where one was), and how many."""
        found = float(self.total), float(self.worst), self._since
        self.total.zero_()
        self.worst.zero_()
        self._since = 0
        return found

    def _capture(self) -> torch.cuda.CUDAGraph:
        state = [*self.adam.param_groups[0]["params"], self.total, self.worst]
        state += [value for entry in self.adam.state.values() for value in entry.values()]
        state += [] if self.used is None else [self.used]
        kept = [tensor.detach().clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        with torch.no_grad():
            for tensor, value in zip(state, kept, strict=True):
                tensor.copy_(value)
        return graph

    def _run(self) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.rough, cache_enabled=False):
            out = self.student.run(self.scaling.inputs(self.x))
        loss = (out.y.float() - self.scaling.outputs(self.y)).square().mean()
        loss.backward()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.total += loss
            torch.maximum(self.worst, loss, out=self.worst)
            if self.used is not None and out.routed is not None:
                self.used.index_fill_(0, out.routed.index.reshape(-1), True)


class Held:
    """Training vectors that lie on the GPU."""

    def __init__(self, pairs: ArrayPairs, device: torch.device, size: int) -> None:
        block = pairs.blocks["train"]
        self._pairs, self._size = pairs, size
        self._inputs, self._outputs = block.x.to(device), block.y.to(device)
        self.x, self.y = self._inputs[:size].clone(), self._outputs[:size].clone()
        """the batch: float32 (size, d_in) and (size, d_out), whose memory stays the same"""

    def batches(self, *, seed: int, epoch: int, skip: int) -> Iterator[Block]:
        """As :func:`moescope.studies.distill.data.batches`; each is put into ``x`` and ``y``."""
        rows = torch.from_numpy(batch_rows(self._pairs, self._size, seed=seed, epoch=epoch)[skip:]).to(self.x.device)
        for row in rows:
            torch.index_select(self._inputs, 0, row, out=self.x)
            torch.index_select(self._outputs, 0, row, out=self.y)
            yield Block(self.x, self.y, None)


def on_gpu(pairs: Pairs, device: torch.device, size: int) -> Held | None:
    """The training vectors on the GPU; None where they are read again in every epoch, or do not fit beside the students."""
    if device.type != "cuda" or not isinstance(pairs, ArrayPairs):
        return None
    block = pairs.blocks["train"]
    if 4 * (block.x.numel() + block.y.numel()) > _SPARE * torch.cuda.mem_get_info(device)[0]:
        return None
    return Held(pairs, device, size)
