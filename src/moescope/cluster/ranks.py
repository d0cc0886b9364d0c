"""The ranks that torchrun started: the first does the job, and has the others collect for it.

Jobs and results are host memory, so that they travel by gloo also between processes whose models are on GPUs: what a model
gives is reduced on its device and fetched there anyway, and NCCL would bring it back to the device to send it. It is what lets
several ranks share one GPU, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from moescope.cluster.engine import Collect, ProcessLost, R, S, plain_error
from moescope.cluster.share import share

_PATIENCE = timedelta(days=7)  # the others wait as long as the first computes alone
_current: Ranks | None = None


class Ranks:
    """The engine of the first rank, while :func:`ranks` is open."""

    name = "torchrun"

    def __init__(self, dist: Any) -> None:
        self._dist = dist
        self.processes: int = dist.get_world_size()
        self.elsewhere = 0
        self.busy: set[int] = set()
        """ranks that were given a job and have not answered it all"""

    def map(
        self, collect: Collect[S, R], shards: Sequence[S], costs: Sequence[float], *, here: Collect[S, R]
    ) -> Iterator[tuple[int, R]]:
        parts = share(costs, self.processes)
        for rank, numbers in enumerate(parts):
            if rank and numbers:
                self.busy.add(rank)
                self._exchange(rank, self._dist.send_object_list, [(collect, [shards[n] for n in numbers])])
        yield from zip(parts[0], here([shards[n] for n in parts[0]]), strict=True)
        for rank in sorted(self.busy):
            for number in parts[rank]:
                answer = [None]
                self._exchange(rank, self._dist.recv_object_list, answer)
                result: Any = answer[0]
                if isinstance(result, _Failed):
                    raise result.error
                self.elsewhere += 1
                yield number, result
            self.busy.remove(rank)

    def end(self) -> None:
        """Let the others end, unless one is amid a job: it ends when it cannot answer."""
        for rank in range(1, self.processes) if not self.busy else ():
            self._exchange(rank, self._dist.send_object_list, [None])

    def lost(self) -> int | None:
        """A rank of this machine that ended without a word, as one does that is killed."""
        store = _store()
        for rank in range(1, self.processes):
            if not store.check([f"moescope/place/{rank}"]) or store.check([f"moescope/end/{rank}"]):
                continue
            machine, _, process = store.get(f"moescope/place/{rank}").decode().rpartition(" ")
            if machine == os.uname().nodename and not _alive(int(process)):
                return rank
        return None

    def _exchange(self, rank: int, act: Any, objects: list[Any]) -> None:
        try:
            act(objects, rank)
        except RuntimeError as error:  # of gloo: the connection is closed
            raise _died(rank) from error


class _Failed:
    """Sent in place of a result."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def current() -> Ranks | None:
    """The ranks that this process leads."""
    return _current


@contextlib.contextmanager
def ranks() -> Iterator[None]:
    """Around a program that torchrun started: the first rank runs the block, with the others at its service.

    The others run jobs until the first is done, and then end their process without entering the block. Without torchrun, and
    with one rank, the block is just run.

    Raises:
        ProcessLost: a rank died, instead of what the block raised because of it.
    """
    global _current
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1 or _current is not None:
        yield
        return
    import torch.distributed as dist  # seconds that a command of one process need not wait

    dist.init_process_group("gloo", timeout=_PATIENCE)
    if dist.get_rank():
        _serve(dist, dist.get_rank())
    _current = Ranks(dist)
    try:
        yield
        _current.end()
    except ProcessLost:
        raise
    except KeyboardInterrupt as error:
        # torchrun ends the ranks that are left when one dies, and may do so before its silence is heard
        rank = _current.lost()
        if rank is None:
            raise
        raise _died(rank) from error
    except BaseException:
        _current.end()
        raise
    finally:
        _current = None


def rank_device(asked: str | None) -> str | None:
    """The device that ``asked`` means in this process: of several ranks each takes another GPU of its machine."""
    import torch

    if asked not in (None, "cuda") or not torch.distributed.is_initialized() or not torch.cuda.is_available():
        return asked
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def _serve(dist: Any, rank: int) -> NoReturn:
    """Run what the first rank sends until it sends nothing more, or is gone; then end this process."""
    store = _store()
    store.set(f"moescope/place/{rank}", f"{os.uname().nodename} {os.getpid()}")
    code = 1
    warnings.simplefilter("ignore")  # the first rank warns of the same
    try:
        with contextlib.suppress(RuntimeError):  # of gloo: the first rank is gone, and has said why
            while True:
                job: list[Any] = [None]
                dist.recv_object_list(job, 0)
                if job[0] is None:
                    code = 0
                    break
                collect, shards = job[0]
                for answer in _answers(collect, shards, rank):
                    dist.send_object_list([answer], 0)
    except KeyboardInterrupt:  # also one that waited until gloo gave up
        code = 143
        with contextlib.suppress(RuntimeError):  # torchrun is gone, too
            store.set(f"moescope/end/{rank}", "")
    sys.stdout.flush()
    os._exit(code)  # threads of gloo may still wait for those that are gone


def _answers(collect: Collect[S, R], shards: Sequence[S], rank: int) -> list[Any]:
    try:
        return list(collect(shards))
    except Exception as error:
        return [_Failed(plain_error(error, f"rank {rank}"))]


def _died(rank: int) -> ProcessLost:
    return ProcessLost(
        f"rank {rank} died; torchrun's report names its exit code. Nothing half was written: run the same command again"
    )


def _store() -> Any:
    """Where every rank can leave a word; torchrun's own process keeps it."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
