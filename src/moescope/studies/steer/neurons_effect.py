"""A circuit's neurons switched off on text, and random neurons of like norm."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moescope.capture import moments
from moescope.errors import InputError
from moescope.files.bundle import MANIFEST, read_manifest
from moescope.files.parse import parse_object
from moescope.files.text import read_text
from moescope.intervene.intervene import group_by_site, intervene
from moescope.intervene.matched import matched_sets, norm_ratio
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.replicas import Replicas
from moescope.intervene.running_text import LOSS, loss_readout
from moescope.studies.steer.effects import Plan, Texts
from moescope.study.encode import circuit_from_json
from moescope.types import Circuit, Neuron, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moescope.models import LoadedModel
    from moescope.studies.steer.settings import AblateMode, SteerSettings
    from moescope.study.run import Counter, Run


def neurons_plan(
    model: LoadedModel, neurons: Sequence[Neuron], texts: Texts, *, settings: SteerSettings, mode: AblateMode, run: Run
) -> Plan:
    """Neurons set to their mean (or to zero) at every token, and random sets of the same sites and like norms
    (:func:`moescope.intervene.matched.matched_sets`).

    Raises:
        InputError: a neuron that the model does not have, or too few others to draw from.
    """
    means, norms = neuron_moments(model, neurons, texts, batch_tokens=run.batch_tokens)
    sets = matched_sets(neurons, norms, n_sets=settings.n_random, seed=run.seed)
    replaced = {site: torch.from_numpy(mean if mode == "mean" else np.zeros_like(mean)).float() for site, mean in means.items()}

    def effects(progress: Counter | None) -> np.ndarray:
        replicas = Replicas(model, list(texts.encoded), positions="all", logits="all", batch_tokens=run.batch_tokens)
        losses = replicas.run(NeuronSets(model, [[], neurons, *sets], replaced), loss_readout, progress)[LOSS]
        return np.asarray(losses[1:].astype(np.float64) - losses[0])

    return Plan(
        partial(intervene, model, neurons, "patch", values=[float(replaced[n.site][n.index]) for n in neurons]),
        effects,
        {"overall": len(sets)},
        {"overall": norm_ratio(neurons, sets, norms)},
        {"overall": float(np.mean([len(set(neurons) & set(members)) / len(neurons) for members in sets]))},
    )


def load_circuit(path: str | Path) -> Circuit:
    """A circuit from a circuits result (its folder or results.json: the circuits of all its tasks together) or from a JSON
    file with the list ``neurons``, each with ``site``, ``layer`` and ``neuron``.

    Raises:
        InputError: the file is not there, or holds no circuit.
    """
    file, data = _stored(path)
    try:
        stored = [data] if "neurons" in data else list(data["circuits"].values())
        circuits = [circuit_from_json({"task": file.stem, "divergence": [], **one}) for one in stored]
        neurons = list(dict.fromkeys(n for c in circuits for n in c.neurons))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'{file}: no circuit in it; give {{"neurons": [{{"site": "resid", "layer": 3, "neuron": 17}}]}}', "ablate"
        ) from error
    if not neurons:
        raise InputError(f"{file}: its circuit has no neurons", "ablate")
    return Circuit("+".join(c.task for c in circuits), tuple(neurons), ())


def check_circuit_of(path: str | Path, model: LoadedModel) -> None:
    """Whether the circuits result at ``path`` is of ``model``; a list of neurons says nothing of where it is from.

    Raises:
        InputError: it is of another model, whose neurons of these numbers do something else.
    """
    file, data = _stored(path)
    meta = data.get("meta", {})
    if meta.get("fingerprint", model.fingerprint) != model.fingerprint:
        raise InputError(f"{file} is a circuit of {meta.get('model')}, not of {model.name} (other weights)", "ablate")


def _stored(path: str | Path) -> tuple[Path, Any]:
    source = Path(path)
    file = source / MANIFEST if source.is_dir() else source
    try:
        return file, read_manifest(file) if file.name == MANIFEST else parse_object(read_text(file))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file}: this is not JSON ({error})", "ablate") from error


def neuron_moments(
    model: LoadedModel, neurons: Sequence[Neuron], texts: Texts, *, batch_tokens: int = 8192
) -> tuple[dict[Site, np.ndarray], dict[Site, np.ndarray]]:
    """Mean and root mean square (D,) of each of the neurons' sites over the texts' tokens."""
    means, norms = {}, {}
    for site in group_by_site(model, neurons):
        found = moments(
            model, texts.encoded, [site], np.zeros(len(texts.encoded), int), position="all", skip_special=False,
            batch_tokens=batch_tokens,
        ).total()  # fmt: skip
        means[site] = found.mean[0, 0]
        norms[site] = np.sqrt(found.variance()[0, 0] + means[site] ** 2)
    return means, norms
