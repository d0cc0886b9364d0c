"""What a study of MLPs holds in memory beside the model that it is given: copies of it, codes, and what a refit needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moescope.models.blueprint import Blueprint

_AT_ONCE = 2048  # tokens of a batch of held-out text
_SOLVED = 4096  # neurons that a refit solves for together
_EIGHT, _FOUR, _PLANES = 8.5 / 8, 4.5 / 8, 9.5 / 8  # bytes of a weight with its scales; the planes' of gate and up twice


@dataclass(frozen=True)
class _Sizes:
    """Of a decoder with gated MLPs: layers, width, neurons, words of its vocabulary, and parameters of all MLPs and of all."""

    layers: int
    width: int
    neurons: int
    vocabulary: int
    parameters: int

    @property
    def mlps(self) -> int:
        return 3 * self.layers * self.width * self.neurons


def held_beside(command: str, made: Blueprint, settings: Any, size: int) -> dict[str, int]:
    """Bytes by what they are for, at most; nothing for other studies than ``convert`` and ``sparsify``.

    Args:
        size: bytes of one of the model's numbers.
    """
    if command not in _OF:
        return {}
    config = made.model.config.get_text_config()
    neurons = int(getattr(config, "intermediate_size", 0) or 4 * made.model.d_model)
    sizes = _Sizes(made.model.n_layers, made.model.d_model, neurons, made.model.vocabulary or 0, made.resident(True))
    # logits of the original and of one that stands beside it, with what is computed of them in float32
    logits = _AT_ONCE * sizes.vocabulary * (2 * size + 3 * 4)
    return {"logits": logits, **_OF[command](sizes, settings, size)}


def _convert(sizes: _Sizes, settings: Any, size: int) -> dict[str, int]:
    kinds = 3 if settings.controls else 1  # the conversion; a random split and static pruning
    routed = 2 if settings.controls else 1  # of these a checkpoint is made
    copies = (routed + 1) * sizes.parameters * size  # and that which was written is read again
    if not settings.refit:
        return {"copies": copies}
    tokens, d, n = settings.calibration_tokens, sizes.width, min(_SOLVED, sizes.neurons)
    # on the way through a layer: the stream of the dense model and of each student before and after it, and of one student what
    # its MLP reads, should write, and writes
    streams = tokens * d * size * (2 + kinds + 5)
    # float64: the sums of tokens that fit and of those that choose; of one a copy, its factor and the solution
    equations = 8 * (4 * n * n + 3 * n * d)
    refitted = kinds * sizes.layers * d * sizes.neurons * 4
    return {"copies": copies + routed * sizes.parameters * size, "refit": streams + equations + refitted}


def _sparsify(sizes: _Sizes, settings: Any, size: int) -> dict[str, int]:
    mlps, others = sizes.mlps, sizes.parameters - sizes.mlps
    turned = 2 * mlps / 3 * _EIGHT + sizes.layers * sizes.width**2 * 12 if "rotated" in settings.rivals else 0
    codes = mlps * _EIGHT + turned + sizes.layers * sizes.width**2 * 8
    written = mlps * _EIGHT + others * size
    loops = mlps * (_EIGHT + _FOUR + _PLANES) if settings.speed else 0
    weights = 3 * 2 * mlps / sizes.layers * 4  # of one layer in float32, while they are unpacked
    return {"codes": int(codes + weights), "written": int(written), "loops": int(loops)}


_OF: dict[str, Callable[[_Sizes, Any, int], dict[str, int]]] = {"convert": _convert, "sparsify": _sparsify}
