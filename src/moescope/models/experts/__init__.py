"""Where a running model sends its tokens: found per layer, recorded per forward pass.

``output_router_logits`` is not the dispatch: dense layers are skipped in it, a selection bias, a group limit or a hash table
decides after it, and ``generate`` never returns it. What the experts are called with is what happens, so that is what is
recorded.
"""

from moescope.models.experts.gating import Gating, describe_gating
from moescope.models.experts.layers import ExpertLayer, expert_layers, mixes_tokens
from moescope.models.experts.recompute import routed_output
from moescope.models.experts.recorder import Dispatch, DispatchRecorder, recording

__all__ = [
    "Dispatch",
    "DispatchRecorder",
    "ExpertLayer",
    "Gating",
    "describe_gating",
    "expert_layers",
    "mixes_tokens",
    "recording",
    "routed_output",
]
