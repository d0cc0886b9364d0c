"""Routing of mixture-of-experts models: which experts each token was really sent to, and what that says."""

from moescope.models.experts import expert_layers, recording
from moescope.routing.capture import trace_prompts
from moescope.routing.generate import Decoding
from moescope.routing.trace import RoutingTrace, TracedSequence

__all__ = ["Decoding", "RoutingTrace", "TracedSequence", "expert_layers", "recording", "trace_prompts"]
