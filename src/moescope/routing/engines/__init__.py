"""Routing recorded by the engines that serve models, by what they write.

======================  ====================================================================================================
``responses``           answers of a server as JSON: vLLM's three dialects, SGLang's two
``arrays``              arrays by request: ``.npy``, a folder of them, ``.npz``, ``.safetensors``
``recorder``            SGLang's expert distribution recorder: tokens (``per_token``) or loads (``stat``, ``per_pass``, CSV)
``table``               llama.cpp's ``moe-trace``: loads
``model``, ``build``    what a file does not say of the model; requests put together to a trace, and checked
======================  ====================================================================================================

Everything that is read goes through :mod:`moescope.routing.sense`.
"""

from moescope.routing.engines.model import EngineModel
from moescope.routing.engines.read import import_routing, import_sglang, import_vllm
from moescope.routing.engines.recorder import SGLANG_CONVERSION

__all__ = ["SGLANG_CONVERSION", "EngineModel", "import_routing", "import_sglang", "import_vllm"]
