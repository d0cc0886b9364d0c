"""Which device holds which experts, and how unevenly that loads the devices."""

from __future__ import annotations

import numpy as np


def contiguous(layers: int, n_experts: int, redundant: int = 0) -> np.ndarray:
    """(L, P = E + redundant) experts by place in the order of their numbers, as engines put them if told nothing."""
    return np.tile(np.arange(n_experts + redundant) % n_experts, (layers, 1))


def shuffled(placed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(L, P) the same experts on other places, at random."""
    return rng.permuted(placed, axis=1)


def balanced(load: np.ndarray, devices: int, redundant: int = 0) -> np.ndarray:
    """(L, P = E + redundant) experts by place, so that devices carry much the same load, with as many experts on each.

    The copies go one by one to the expert with most load a copy; then copies are put, the heaviest first, on the device with
    least load that has room, and no copy of that expert where there is another such (the longest processing time first, Graham
    1969). A copy carries its part of the expert's load.

    Args:
        load: (L, E) of each expert.
    """
    room = (load.shape[1] + redundant) // devices
    placed = np.empty((len(load), room * devices), np.int64)
    for layer, own in enumerate(load.astype(float)):
        copies = np.ones(len(own), np.int64)
        for _ in range(redundant):
            copies[int(np.argmax(np.where(copies < devices, own / copies, -1)))] += 1
        carried, free = np.zeros(devices), np.full(devices, room)
        held: list[list[int]] = [[] for _ in range(devices)]
        each = own / copies
        for expert in np.argsort(-each, kind="stable").tolist():
            for _ in range(copies[expert]):
                twice = np.array([expert in have for have in held])
                at = int(np.lexsort((-free, carried, twice, free == 0))[0])
                held[at].append(expert)
                carried[at] += each[expert]
                free[at] -= 1
        placed[layer] = [expert for have in held for expert in sorted(have)]
    return placed


def device_loads(load: np.ndarray, placed: np.ndarray, devices: int) -> np.ndarray:
    """(..., L, devices) load of each device, an expert's shared out evenly among its copies.

    Args:
        load: (..., L, E).
        placed: (L, P) experts by place; P / devices places in turn are a device's.
    """
    layers, places = placed.shape
    share = np.zeros((layers, load.shape[-1], devices))
    device = np.arange(places) * devices // places
    for layer in range(layers):
        np.add.at(share[layer], (placed[layer], device), 1)
    share /= np.maximum(share.sum(2, keepdims=True), 1)
    return np.asarray(np.einsum("...le,led->...ld", load, share))


def imbalance(load: np.ndarray, placed: np.ndarray, devices: int) -> np.ndarray:
    """(..., L) load of the busiest device over the mean of all: 1 is even. The others wait for it."""
    carried = device_loads(load, placed, devices)
    return np.asarray(carried.max(-1) / np.maximum(carried.mean(-1), 1e-300))
