"""Is a circuit used? Ablate it in the running model, beside random sets of neurons that match it in layer and norm.

An effect is ablated minus clean, on texts from which neither the circuit nor the probe was learnt. Effects are lower
bounds of what the neurons do in the untouched model: later layers compensate for what was removed (McGrath, Rahtz,
Kramár, Mikulik and Legg 2023, "The Hydra effect: emergent self-repair in language model computations"). Mean ablation
is the default because zero is far from what downstream layers have seen, so that a zeroed neuron hurts whether or not
it carries the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.intervene.intervene import group_by_site
from moescope.intervene.matched import matched_sets, norm_ratio
from moescope.intervene.replicas import Progress, Replicas
from moescope.studies.circuits.causal_targets import (
    HIGHER_IS_HARM,
    NeuronSets,
    Probe,
    answers_of,
    final_vectors,
    loss_readout,
    plain_windows,
    task_readout,
)
from moescope.studies.circuits.causal_values import (
    ABLATION_MODES,
    AblationMode,
    class_means,
    plain_replacement,
    rows_of,
    split_task,
    task_replacement,
)
from moescope.types import Neuron, Site, Task

if TYPE_CHECKING:
    from moescope.models import LoadedModel


def ablation_study(
    model: LoadedModel,
    task: Task,
    ranking: Sequence[Neuron],
    *,
    selection: np.ndarray | None = None,
    ks: Sequence[int] = (1, 2, 5, 10, 20, 50),
    mode: AblationMode = "mean",
    n_random: int = 100,
    norms: Mapping[Site, np.ndarray] | None = None,
    means: Mapping[Site, np.ndarray] | None = None,
    wikitext: Sequence[str] | None = None,
    text_tokens: int = 512,
    positions: Literal["final", "all"] = "final",
    seed: int = 0,
    batch_tokens: int = 8192,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The dose curve of ablating a circuit's first k neurons, against matched random sets.

    Targets, each the mean over the texts that are *not* in ``selection``:

    - ``probe_accuracy``: a logistic probe of the last layer's residual stream at the final token, fitted on clean
      activations of the ``selection`` texts. (A circuit neuron of the last layer itself is read directly by it.)
    - ``answer_logodds``, ``answer_accuracy``: where the task has answer words and the model was loaded with its head,
      log p(first token of the true class's word) minus log of the others' sum, nats, at the final position; and how
      often the true word is the likeliest of them.
    - ``wikitext_loss``: nats per token on ``wikitext``, off task. There every token but each window's first (which
      often holds attention sinks) is edited, and ``mean`` and ``resample`` take their values from that text itself.

    Args:
        ranking: neurons, best first, found on the ``selection`` texts alone.
        selection: bool (N,), True for the texts that ``ranking`` was found on; groups must not straddle. None means
            ``split_half(labels, groups, seed)`` of :mod:`moescope.tasks.folds`, and then ``ranking`` must come from
            that half.
        mode: ``"mean"`` of the selection texts at the final token, ``"zero"``, ``"resample"`` (the values of a random
            selection text, one for all neurons) or ``"patch"`` (the mean of the other classes; on other text, of the
            classes in turn).
        norms: for each site (D,) what random sets are matched on; None means the root mean square over selection texts.
        means: for each site (D,) what ``mode="mean"`` sets on the task's texts; None means the selection texts' mean.
        text_tokens: of ``wikitext``; its cost is text_tokens x sets tokens, by far the largest part of a study.
        positions: ``"final"`` (where the circuit was found) or ``"all"`` (the same values at every token; slow).
        n_random: at least 100 for a claim. The same random sets, cut to k, serve every k.
        progress: called with (done, total) texts times sets.

    Returns:
        One row per k and target: task, k, mode, target, off_task, baseline, effect, random_mean, random_low,
        random_high (2.5 and 97.5 % of the random sets' effects), p = (1 + random sets at least as harmful) / (1 +
        n_random), n_random, norm_ratio (random to circuit; 1 is a perfect match). ``attrs`` counts texts, forward
        passes and savings.

    Raises:
        InputError: K beyond the ranking or the layer, a neuron the model lacks, a split without all classes, a group
            on both sides, answers that begin alike.
    """
    ks = _check_options(ks, len(ranking), mode, n_random, positions)
    circuit = list(ranking[: ks[-1]])
    sites = list(group_by_site(model, circuit))
    split = split_task(task, selection, seed)
    encoded = encode(model, [e.text for e in task.examples], max_tokens=max_tokens)
    fitted = rows_of(encoded, split.fit)
    last = Site("resid", model.n_layers - 1)
    vectors = final_vectors(model, fitted, [*sites, last], batch_tokens=batch_tokens, max_tokens=max_tokens)
    probe = Probe.fit(vectors[last], split.fit_labels)
    if norms is None:
        norms = {site: np.sqrt(np.square(vectors[site], dtype=np.float64).mean(0)) for site in sites}
    random = matched_sets(circuit, norms, n_sets=n_random, seed=seed)
    # interventions in order: none, the circuit cut to each k, each random set cut to each k
    sets: list[list[Neuron]] = [[], *(circuit[:k] for k in ks), *(members[:k] for k in ks for members in random)]
    rng = np.random.default_rng([seed, 1])
    values = task_replacement(mode, {site: vectors[site] for site in sites}, split, rng)

    if mode == "mean" and means is not None:
        values = {site: torch.as_tensor(np.asarray(means[site]), dtype=torch.float32) for site in sites}

    evaluated = [encoded[i] for i in split.evaluate]
    answers = answers_of(model, task, encoded)
    windows = []
    if wikitext is not None and model.has_head and not model.is_encoder:
        windows = plain_windows(model, wikitext, tokens=text_tokens, max_tokens=max_tokens)
    total = len(sets) * (len(evaluated) + len(windows))

    def after(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    replicas = Replicas(model, evaluated, positions=positions, logits="final" if answers else None, batch_tokens=batch_tokens)
    scores = replicas.run(NeuronSets(model, sets, values), task_readout(probe, split.labels, answers), after(0))
    attrs: dict[str, Any] = {
        "selection_texts": len(split.fit),
        "evaluation_texts": len(split.evaluate),
        "forwards": replicas.forwards,
        "one_token": replicas.one_token,
        "late_start": replicas.late_start,
    }
    if windows:
        other = Replicas(model, windows, positions="all", logits="all", batch_tokens=batch_tokens, spare_first=True)
        by_class = {site: class_means(vectors[site], split.fit_labels, split.n_classes) for site in sites}
        plain = plain_replacement(model, mode, np.stack(windows), by_class, rng, batch_tokens)
        progressed = after(len(sets) * len(evaluated))
        scores |= other.run(NeuronSets(model, sets, plain), loss_readout, progressed)
        attrs |= {"wikitext_tokens": sum(map(len, windows)), "wikitext_forwards": other.forwards}

    records = []
    for place, k in enumerate(ks):
        ratio = norm_ratio(circuit[:k], [members[:k] for members in random], norms)
        for target, score in scores.items():
            mean = score.mean(1, dtype=np.float64)  # (S,)
            first = 1 + len(ks) + place * n_random
            row = summary(target, mean[0], mean[1 + place], mean[first : first + n_random])
            records.append({"task": task.name, "k": k, "mode": mode, **row, "norm_ratio": ratio})
    frame = pd.DataFrame.from_records(records)
    frame.attrs.update(attrs)
    return frame


def summary(target: str, baseline: float, ablated: float, random: np.ndarray) -> dict[str, Any]:
    """One target's effect beside those of the random interventions (R,)."""
    effects = np.asarray(random, dtype=np.float64) - baseline
    effect = float(ablated - baseline)
    harm = 1.0 if target in HIGHER_IS_HARM else -1.0
    # accuracies are multiples of 1 / texts: a tie must not be lost to rounding
    at_least = int((harm * effects >= harm * effect - 1e-9).sum())
    low, high = np.percentile(effects, [2.5, 97.5])
    return {
        "target": target,
        "off_task": target in HIGHER_IS_HARM,
        "baseline": float(baseline),
        "effect": effect,
        "random_mean": float(effects.mean()),
        "random_low": float(low),
        "random_high": float(high),
        "p": (1 + at_least) / (1 + len(effects)),
        "n_random": len(effects),
    }


def _check_options(ks: Sequence[int], ranked: int, mode: str, n_random: int, positions: str) -> list[int]:
    if not ks or min(ks) < 1:
        raise InputError(f"ks={tuple(ks)}: give circuit sizes of at least 1")
    if max(ks) > ranked:
        raise InputError(f"ks: K={max(ks)} is larger than the {ranked} neurons of the ranking; use a smaller K")
    if mode not in ABLATION_MODES:
        raise InputError(f"mode={mode!r}: choose from {', '.join(ABLATION_MODES)}")
    if n_random < 1:
        raise InputError(f"n_random={n_random}: at least 1 random set is needed, 100 for a claim")
    if positions not in ("final", "all"):
        raise InputError(f"positions={positions!r}: choose from final, all")
    return sorted(set(ks))
