"""Classifiers that leave the model early: their heads, their rule, their files."""

from moescope.runtime.exit.classifier import ExitClassifier, Exits
from moescope.runtime.exit.store import load_exit, save_exit

__all__ = ["ExitClassifier", "Exits", "load_exit", "save_exit"]
