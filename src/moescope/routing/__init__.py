"""Routing of mixture-of-experts models: which experts each token was really sent to, and what that says."""

from moescope.routing.capture import Decoding, trace_prompts
from moescope.routing.dispatch import recording
from moescope.routing.trace import RoutingTrace, TracedSequence

__all__ = ["Decoding", "RoutingTrace", "TracedSequence", "recording", "trace_prompts"]
