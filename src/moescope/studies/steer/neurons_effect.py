"""What ablating a dense circuit's neurons does to a model's loss on text, beside random neurons of like norm."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from moescope.capture.encode import batches, pad, padding_id
from moescope.capture.session import capture
from moescope.errors import InputError
from moescope.intervene.intervene import group_by_site, intervene
from moescope.intervene.text_loss import Applied
from moescope.studies.steer.effects import EffectSettings, Progress, Texts, compare_effects
from moescope.study.encode import circuit_from_json
from moescope.types import Circuit, Neuron, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moescope.models import LoadedModel

AblateMode = Literal["mean", "zero"]


def ablation_effects(
    model: LoadedModel,
    neurons: Sequence[Neuron],
    texts: Texts,
    *,
    mode: AblateMode = "mean",
    target: str | None = None,
    settings: EffectSettings | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The effect of setting neurons to their mean (or to zero) at every token, against random sets of the same sites and
    like norms (:func:`moescope.intervene.matched.matched_sets`).

    Returns:
        What :func:`compare_effects` gives, and ``usage_ratio``: the norm of the random neurons over
        that of the ablated.

    Raises:
        InputError: a neuron that the model does not have, or too few others to draw from.
    """
    from moescope.intervene.matched import matched_sets, norm_ratio

    settings = settings or EffectSettings()
    means, norms = neuron_moments(model, neurons, texts, batch_tokens=settings.batch_tokens)
    sets = matched_sets(neurons, norms, n_sets=settings.n_random, seed=settings.seed)
    frame = compare_effects(
        model,
        texts,
        ablated(model, neurons, mode, means),
        {"overall": [ablated(model, members, mode, means) for members in sets]},
        target=target,
        settings=settings,
        progress=progress,
    )
    frame["usage_ratio"] = norm_ratio(neurons, sets, norms)
    return frame


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
        raise InputError(f"--ablate {file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise InputError(f"--ablate {file}: this is not JSON ({error})") from error
    try:
        stored = [data] if "neurons" in data else list(data["circuits"].values())
        circuits = [circuit_from_json({"task": file.stem, "divergence": [], **one}) for one in stored]
        neurons = list(dict.fromkeys(n for c in circuits for n in c.neurons))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f'--ablate {file}: no circuit in it; give {{"neurons": [{{"site": "resid", "layer": 3, "neuron": 17}}]}}'
        ) from error
    if not neurons:
        raise InputError(f"--ablate {file}: its circuit has no neurons")
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
