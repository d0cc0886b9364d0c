"""A circuit's neurons switched off on text, and random neurons of like norm."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from moescope.capture.encode import batches, pad, padding_id
from moescope.capture.session import capture
from moescope.errors import InputError
from moescope.intervene.intervene import group_by_site, intervene
from moescope.intervene.matched import matched_sets, norm_ratio
from moescope.intervene.text_loss import Applied
from moescope.studies.steer.effects import Plan, Texts
from moescope.study.encode import circuit_from_json
from moescope.types import Circuit, Neuron, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moescope.models import LoadedModel
    from moescope.studies.steer.settings import AblateMode, SteerSettings
    from moescope.study.run import Run


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
    return Plan(
        ablated(model, neurons, mode, means),
        {"overall": [ablated(model, members, mode, means) for members in sets]},
        {"overall": norm_ratio(neurons, sets, norms)},
        {"overall": float(np.mean([len(set(neurons) & set(members)) / len(neurons) for members in sets]))},
    )


def ablated(model: LoadedModel, neurons: Sequence[Neuron], mode: AblateMode, means: dict[Site, np.ndarray]) -> Applied:
    """The ablation of some neurons as an intervention that can be opened."""
    values = np.array([means[n.site][n.index] for n in neurons], dtype=np.float32) if mode == "mean" else None
    return partial(intervene, model, neurons, mode, values=values)


def load_circuit(path: str | Path) -> Circuit:
    """A circuit from a circuits result (its folder or results.json: the circuits of all its tasks together) or from a JSON
    file with the list ``neurons``, each with ``site``, ``layer`` and ``neuron``.

    Raises:
        InputError: the file is not there, or holds no circuit.
    """
    source = Path(path)
    file = source / "results.json" if source.is_dir() else source
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})", "ablate") from error
    except ValueError as error:
        raise InputError(f"{file}: this is not JSON ({error})", "ablate") from error
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


def neuron_moments(
    model: LoadedModel, neurons: Sequence[Neuron], texts: Texts, *, batch_tokens: int = 8192
) -> tuple[dict[Site, np.ndarray], dict[Site, np.ndarray]]:
    """Mean and root mean square (D,) of each of the neurons' sites over the texts' tokens."""
    sites = list(group_by_site(model, neurons))
    total = {site: np.zeros((2, model.width(site))) for site in sites}
    with capture(model, sites) as session:
        for rows in batches(texts.encoded.lengths, batch_tokens):
            batch = pad(texts.encoded, rows, pad_id=padding_id(model))
            mask = batch.mask.to(model.device)

            def sums(site: Site, x: torch.Tensor, mask: torch.Tensor = mask) -> np.ndarray:
                real = x[mask.to(x.device)].double()
                return torch.stack([real.sum(0), real.square().sum(0)]).cpu().numpy()

            for site, found in session.run(batch.ids, batch.mask, reduce=sums).items():
                total[site] += found
    count = int(texts.encoded.lengths.sum())
    return {s: t[0] / count for s, t in total.items()}, {s: np.sqrt(t[1] / count) for s, t in total.items()}
