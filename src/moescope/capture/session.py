"""From sites to tensors: hooks on a running model body that stops after the last site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from moescope.errors import InputError
from moescope.models.inputs import BodyInputs
from moescope.models.sites import parse_sites
from moescope.types import Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel, SitesLike

Reduce = Callable[[Site, torch.Tensor], Any]
"""Called with a site and its tensor (B, T, D) while the model runs; what it returns is kept instead of the tensor."""


class _Stop(Exception):
    """Every wanted site has been seen."""


class CaptureSession:
    """Made by :func:`capture`; :meth:`run` runs the model body on one batch."""

    def __init__(self, model: LoadedModel, sites: Sequence[Site], stop: bool) -> None:
        self.model = model
        self.sites = tuple(sites)
        self._stop = stop and not is_offloaded(model)
        self._seen: dict[Site, Any] = {}
        self._reduce: Reduce | None = None
        self._active = False
        self._inputs = BodyInputs(model)

    def run(self, ids: torch.Tensor, mask: torch.Tensor | None = None, *, reduce: Reduce | None = None) -> dict[Site, Any]:
        """Run the body without gradients on token ids (B, T) and return each site's tensor (B, T, D), in the model's
        dtype.

        Args:
            mask: bool or int (B, T), true where there is a token; padding may be on either side. None: no padding.
            reduce: ``reduce(site, tensor)`` is called inside the forward pass and its result is kept; without it the
                tensor is copied, since a model may overwrite its residual stream in place.

        Values at padded places mean nothing.
        """
        self._check(ids, mask)
        inputs = self._inputs(ids, mask)
        self._seen, self._reduce, self._active = {}, reduce, True
        try:
            with torch.no_grad():
                self.model.body(**inputs)
        except _Stop:
            pass
        finally:
            self._active = False
        seen, self._seen = self._seen, {}
        missing = [site for site in self.sites if site not in seen]
        if missing:
            raise InputError(f"site {missing[0]}: model {self.model.name} did not reach it in its forward pass")
        return {site: seen[site] for site in self.sites}

    def _check(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """That the ids are tokens of the model, in rows of one length, and the mask of their shape.

        Raises:
            InputError: they are not.
        """
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or not ids.numel() or ids.dtype not in (torch.int32, torch.int64):
            raise InputError(f"{_said(ids)} was given; give token ids, a torch tensor of whole numbers (texts, tokens)", "ids")
        beyond = self.model.vocabulary
        low, high = (int(n) for n in ids.aminmax())
        if low < 0 or (beyond is not None and high >= beyond):
            has = "ids from 0" if beyond is None else f"0-{beyond - 1}"
            raise InputError(f"{low if low < 0 else high} is no token of {self.model.name}, which has {has}", "ids")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.shape != ids.shape):
            raise InputError(
                f"{_said(mask)} was given for ids of shape {tuple(ids.shape)}; give a tensor of that shape", "mask"
            )

    def _record(self, site: Site, tensor: torch.Tensor) -> None:
        if not self._active or site in self._seen:
            return
        self._seen[site] = tensor.detach().clone() if self._reduce is None else self._reduce(site, tensor.detach())
        if self._stop and len(self._seen) == len(self.sites):
            raise _Stop


def _said(given: object) -> str:
    if isinstance(given, torch.Tensor):
        return f"{str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
    return f"an object of class {type(given).__name__}"


@contextmanager
def capture(model: LoadedModel, sites: SitesLike, *, stop: bool = True) -> Iterator[CaptureSession]:
    """Read sites of a model: ``with capture(model, sites) as session: session.run(ids, mask)[site]``.

    The language-model head never runs, and with ``stop`` nothing after the last site does either (weights offloaded by
    ``device_map`` are an exception: there the body runs to its end, so that they are moved back). The model is in
    evaluation mode inside the context; hooks are removed and its mode is restored on the way out, whatever happens.
    Hooks that were there before, an intervention's say, act first: what is read is what the model goes on with.

    Raises:
        InputError: no site, a site twice, or a site that the model does not have.
    """
    sites = parse_sites(sites, model)
    if not sites:
        raise InputError("sites: none were given")
    if len(set(sites)) != len(sites):
        raise InputError("sites: one is listed twice")
    points = [(site, model.tap_point(site)) for site in sites]
    session = CaptureSession(model, sites, stop)
    training = [module for module in model.body.modules() if module.training]
    handles = []
    try:
        model.body.eval()
        for site, point in points:
            handles.append(point.attach(partial(session._record, site)))
        yield session
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


def is_offloaded(model: LoadedModel) -> bool:
    """Whether some weights wait on the CPU or the disk and are brought in by a layer's own hooks (``device_map``)."""
    placed = set(map(str, (getattr(model.module, "hf_device_map", None) or {}).values()))
    return (bool(placed & {"cpu", "disk"}) and len(placed) > 1) or "disk" in placed
