"""Values of a study as plain JSON and arrays, and back to the same values, bit for bit: what a finished stage is kept as.

No pickle: a record is built of moescope's own dataclasses and named tuples alone, field by field; none of their code runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import torch

_PLAIN = (type(None), bool, int, float, str)
_OWN = "moescope."


class Trees:
    """Takes values apart into a tree, its arrays beside it.

    Args:
        shared: by name, what is not stored but given again when the value is put together (a model, a tokenizer, a task's
            activations).
    """

    def __init__(self, shared: Mapping[str, object]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._shared = {id(value): name for name, value in shared.items()}
        self._names: dict[int, str] = {}
        self._held: list[object] = []  # an id is one only while its object lives

    def tree(self, value: Any) -> Any:
        """``value`` as JSON.

        Raises:
            TypeError: it holds something that is none of: plain values, arrays, tensors, tables, dataclasses and named tuples
                of moescope, lists, tuples, sets and dicts of them.
        """
        if id(value) in self._shared:
            return {"shared": self._shared[id(value)]}
        kind = type(value)
        if kind in _PLAIN:
            return value
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, np.generic):
            return {"number": self._array(np.asarray(value))}
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, pd.DataFrame):
            columns = [[self.tree(name), str(column.dtype), self.tree(column.tolist())] for name, column in value.items()]
            return {"table": columns, "index": self.tree(value.index.tolist())}
        if kind in (list, tuple, set, frozenset):
            return {kind.__name__: [self.tree(part) for part in value]}
        if kind is dict:
            return {"dict": [[self.tree(key), self.tree(part)] for key, part in value.items()]}
        if kind.__module__.startswith(_OWN) and dataclasses.is_dataclass(value):
            fields = {field.name: self.tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"record": [kind.__module__, kind.__qualname__], "fields": fields}
        if kind.__module__.startswith(_OWN) and isinstance(value, tuple):
            return {"named": [kind.__module__, kind.__qualname__], "parts": [self.tree(part) for part in value]}
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} cannot be kept")

    def _array(self, array: np.ndarray, of: object = None) -> dict[str, Any]:
        if array.dtype.kind not in "biuf":
            return {"objects": self.tree(array.ravel().tolist()), "dtype": array.dtype.str, "shape": array.shape}
        # the order decides the last bits of what is computed from it
        by_column = array.flags.f_contiguous and not array.flags.c_contiguous
        key = id(array if of is None else of)
        if key not in self._names:
            self._names[key] = str(len(self.arrays))
            self._held.append(array if of is None else of)
            self.arrays[self._names[key]] = array.T if by_column else array
        return {"array": self._names[key], "by_column": by_column, "mapped": isinstance(array, np.memmap)}

    def _tensor(self, tensor: torch.Tensor) -> dict[str, Any]:
        flat = tensor.detach().cpu().contiguous()
        bits = flat.view(torch.int16) if tensor.dtype == torch.bfloat16 else flat  # numpy has no bfloat16
        return {"tensor": self._array(bits.numpy(), tensor), "dtype": str(tensor.dtype).removeprefix("torch.")}


def value_of(tree: Any, arrays: Mapping[str, np.ndarray], shared: Mapping[str, object]) -> Any:
    """The value that :meth:`Trees.tree` took apart; tensors are on the CPU.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, ImportError: the tree is none of its.
    """

    read: dict[str, np.ndarray] = {}

    def of(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kind, held = next(iter(part.items()))
        match kind:
            case "shared":
                return shared[held]
            case "array":
                if held not in read:
                    read[held] = arrays[held] if part["mapped"] else np.array(arrays[held])
                return read[held].T if part["by_column"] else read[held]
            case "objects":
                return np.array(of(held), dtype=part["dtype"]).reshape(part["shape"])
            case "number":
                return of(held)[()]
            case "tensor":
                found = torch.from_numpy(np.asarray(of(held), order="C"))
                return found.view(torch.bfloat16) if part["dtype"] == "bfloat16" else found
            case "table":
                index = of(part["index"])
                rows = pd.RangeIndex(len(index)) if index == list(range(len(index))) else pd.Index(index)
                columns = [(of(name), pd.Series(of(values), rows, dtype=dtype)) for name, dtype, values in held]
                return pd.concat([c for _, c in columns], axis=1, keys=[n for n, _ in columns]) if columns else pd.DataFrame()
            case "list" | "tuple" | "set" | "frozenset":
                parts = map(of, held)
                return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](parts)
            case "dict":
                return {of(key): of(value) for key, value in held}
            case "named":
                return _class(held, tuple)(*map(of, part["parts"]))
            case "record":
                made = object.__new__(_class(held, object))
                for name, value in part["fields"].items():
                    object.__setattr__(made, name, of(value))
                return made
        raise ValueError(f"{kind!r} is no kind of value")

    return of(tree)


def _class(name: list[str], base: type) -> Any:
    module, qualified = name
    found = getattr(import_module(module), qualified) if module.startswith(_OWN) else None
    if not isinstance(found, type) or not issubclass(found, base) or not (dataclasses.is_dataclass(found) or base is tuple):
        raise ValueError(f"{module}.{qualified} is no record of moescope's")
    return found
