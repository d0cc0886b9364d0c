"""Sites in words: as a user types them, and as a message lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Protocol

from moescope.errors import InputError
from moescope.types import MODULE, SITE_KINDS, Site, SiteKind


class HasSites(Protocol):
    """A model, as far as its sites go."""

    @property
    def name(self) -> str: ...
    @property
    def n_layers(self) -> int: ...

    def sites(self, kind: SiteKind | None = None) -> tuple[Site, ...]: ...
    def modules(self, name: str) -> tuple[Site, ...]: ...


def check_loaded(model: object) -> None:
    """That ``model`` is one whose sites are known.

    Raises:
        InputError: it is a name, or a model without what moescope knows of it.
    """
    if not hasattr(model, "tap_point"):
        raise InputError(f"{type(model).__name__} is no loaded model; give moescope.load_model(…)", "model")


SitesLike = str | Site | Iterable[str | Site]
"""Sites in words (see :func:`parse_sites`), one site, or several of both."""


def parse_sites(sites: SitesLike, model: HasSites) -> tuple[Site, ...]:
    """Sites as they are, or in words: ``resid``, ``resid:3``, ``resid:-1``, ``mlp_act:0-5``, ``mlp_out:*``, ``resid:0,2``.

    Any module by its name: ``module:layers.3.mlp.act_fn``, ``module:layers.*.mlp.act_fn``, ``module:layers.*.mlp.act_fn:0-5``.

    Several can be joined with ``;`` or blanks. A kind alone, or with ``*``, means every layer that has it; a layer named
    by number must have it. Order is kept, repeats in words are dropped.

    Raises:
        InputError: an unknown kind, a layer that is not there, or a site that the model lacks; lists what it has.
    """
    check_loaded(model)
    if not isinstance(sites, str):
        members = [sites] if isinstance(sites, Site) or not isinstance(sites, Iterable) else list(sites)
        odd = [m for m in members if not isinstance(m, str | Site)]
        if odd:
            raise InputError(f"{odd[0]!r} is no site; write it as 'resid:3' or Site('resid', 3)", "sites")
        return tuple(site for m in members for site in ((m,) if isinstance(m, Site) else parse_sites(m, model)))
    found: dict[Site, None] = {}
    for part in re.split(r"[;\s]+", sites.strip()):
        if part.startswith(MODULE):
            found |= dict.fromkeys(_modules(part, model))
            continue
        kind, _, where = part.partition(":")
        if kind not in SITE_KINDS:
            raise InputError(
                f"site {part!r} is unknown: {model.name} has {describe_sites(model.sites())}, and any module as {MODULE}NAME"
            )
        have = model.sites(kind)
        for site in have if where in ("", "*") else (Site(kind, n) for n in _numbers(part, where, model.n_layers)):
            if site not in have:
                raise InputError(f"site {str(site)!r} does not exist: {model.name} has {describe_sites(model.sites())}")
            found[site] = None
        if not have:
            raise InputError(f"site {part!r} does not exist: {model.name} has {describe_sites(model.sites())}")
    return tuple(found)


def _modules(part: str, model: HasSites) -> Iterator[Site]:
    """Those of ``module:NAME`` or ``module:NAME:LAYERS``."""
    name, _, where = part.removeprefix(MODULE).partition(":")
    have = model.modules(name)
    wanted = None if where in ("", "*") else set(_numbers(part, where, model.n_layers))
    missing = sorted((wanted or set()) - {site.layer for site in have})
    if missing:
        raise InputError(f"site {part!r} does not exist: {model.name} has {describe_sites(have)}")
    yield from (site for site in have if wanted is None or site.layer in wanted)


def describe_sites(sites: Iterable[Site]) -> str:
    """Sites in short: ``embed:0, resid:0-5, router:1,3,5``."""
    layers: dict[str, list[int]] = {}
    for site in sites:
        layers.setdefault(site.kind, []).append(site.layer)
    return ", ".join(f"{kind}:{_ranges(numbers)}" for kind, numbers in layers.items()) or "no sites"


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _numbers(part: str, where: str, n_layers: int) -> Iterator[int]:
    for piece in where.split(","):
        match = re.fullmatch(r"(-?\d+)(?:-(\d+))?", piece)
        if not match:
            raise InputError(f"site {part!r}: write layers as 3, -1, 0-5, 0,2 or *")
        first = int(match[1])
        if first < 0:
            if match[2] or first < -n_layers:
                raise InputError(f"site {part!r}: a layer counted from the end is -1 to -{n_layers}, without a range")
            yield first + n_layers
            continue
        last = int(match[2]) if match[2] else first
        if last < first:
            raise InputError(f"site {part!r}: the range {piece} runs backwards")
        if last >= n_layers:
            raise InputError(f"site {part!r}: the model has layers 0-{n_layers - 1}")
        yield from range(first, last + 1)
