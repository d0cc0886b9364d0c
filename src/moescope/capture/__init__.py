"""Activations of a transformer, from text to arrays: one context manager, streaming moments, and a sharded store."""

from moescope.capture.activations import activations
from moescope.capture.encode import Encoded, batches, encode
from moescope.capture.moments import ClassMoments, Moments, moments
from moescope.capture.position import Position
from moescope.capture.session import CaptureSession, capture
from moescope.capture.spread import Progress
from moescope.capture.store import ActivationStore

__all__ = [
    "ActivationStore",
    "CaptureSession",
    "ClassMoments",
    "Encoded",
    "Moments",
    "Position",
    "Progress",
    "activations",
    "batches",
    "capture",
    "encode",
    "moments",
]
