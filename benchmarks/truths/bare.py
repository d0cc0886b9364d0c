"""Lets the statistics run where the libraries that read models and compile kernels are not installed.

The measured functions need numpy, scipy, scikit-learn, pandas and torch alone, but their folders import more. ``prepare`` puts
an empty stand-in under each such library that is missing; without numba the one compiled loop that is run gets a numpy body.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd  # noqa: F401  these ask which of the libraries below there are, before there are stand-ins
import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch  # noqa: F401

OPTIONAL = ("numba", "transformers", "safetensors", "huggingface_hub", "tokenizers", "matplotlib")


class _Anything(type):
    """A class of which every attribute is such a class, and which decorates by handing back what it is given."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})

    def __call__(cls, *args: Any, **_: Any) -> Any:
        return args[0] if len(args) == 1 and isinstance(args[0], types.FunctionType) else cls

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, missing: tuple[str, ...]) -> None:
        self._missing = missing

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in self._missing else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""


def prepare() -> tuple[str, ...]:
    """The libraries that were missing; to be called before anything of moescope is imported."""
    missing = tuple(name for name in OPTIONAL if importlib.util.find_spec(name) is None)
    if missing:
        sys.meta_path.append(_Finder(missing))
    try:
        metadata.version("moescope")
    except metadata.PackageNotFoundError:  # a source tree that was never installed has no version
        known = metadata.version
        metadata.version = lambda name: "0" if name == "moescope" else known(name)
    if "numba" in missing:
        from moescope.select import sums

        sums._accumulate = _accumulate
    return missing


def _accumulate(x: np.ndarray, rows: np.ndarray, starts: np.ndarray, shift: np.ndarray, s1: np.ndarray, s2: np.ndarray) -> None:
    for cell, (first, last) in enumerate(pairwise(starts)):
        part = x[rows[first:last]] - shift
        s1[cell] += part.sum(0)
        s2[cell] += (part * part).sum(0)
