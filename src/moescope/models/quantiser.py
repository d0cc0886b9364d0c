"""Sparse MLPs as transformers reads and writes them: a method of quantisation, ``moescope-planes``, its config and its files.

``config.json`` has ``"quantization_config": {"quant_method": "moescope-planes", "bits": 8, "choose": 4, "neurons": [...]}``;
the weights hold ``….mlp.gate_proj.codes`` uint8 (I, d) and ``.scale`` float16 (I, d / 32), likewise of ``up_proj``, and of
``down_proj``, whose rows are neurons too. transformers finds the method once this module is imported, as
:func:`moescope.load_model` does.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from moescope.errors import InputError
from moescope.models.sparse import CodedLinear, put_sparse, sparse_mlps

METHOD = "moescope-planes"


@register_quantization_config(METHOD)
class PlanesConfig(QuantizationConfigMixin):
    """How sparse MLPs are coded and run.

    Args:
        bits: of a code. choose: how many of its first bits choose the neurons.
        neurons: that work on a token, for every layer.

    Raises:
        InputError: they are no such numbers.
    """

    def __init__(self, bits: int = 8, choose: int = 4, neurons: Any = (), **_: Any) -> None:
        self.quant_method: Any = METHOD
        for name, value, least, most in (("bits", bits, 2, 8), ("choose", choose, 2, bits)):
            if type(value) is not int or not least <= value <= most:
                raise InputError(f"quantization_config: {name} must be a whole number from {least} to {most}, got {value!r}")
        if not isinstance(neurons, list | tuple) or not all(type(n) is int and n > 0 for n in neurons):
            raise InputError("quantization_config: neurons must be a list of whole numbers above 0, one a layer")
        self.bits, self.choose, self.neurons = bits, choose, list(neurons)


@register_quantizer(METHOD)
class PlanesQuantizer(HfQuantizer):
    """Puts sparse MLPs in their places before the weights are read, and looks at the codes afterwards."""

    quantization_config: PlanesConfig

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        config = self.quantization_config
        put_sparse(model, config.neurons, config.bits, config.choose)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for number, mlp in enumerate(sparse_mlps(model)):
            for name, part in mlp.named_children():
                if isinstance(part, CodedLinear):
                    _check(part, f"layer {number}, {name}")
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _check(part: CodedLinear, where: str) -> None:
    if part.codes.is_meta:
        return
    if part.codes.dtype != torch.uint8 or int(part.codes.max()) >= 2**part.bits:
        raise InputError(f"{where}: its codes are not of {part.bits} bits: the file is damaged, or another model's")
    if not bool((part.scale >= 0).all()) or not bool(part.scale.isfinite().all()):
        raise InputError(f"{where}: its scales are no numbers of 0 or more: the file is damaged")
