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

from moescope.errors import InputError
from moescope.intervene.effects import against_random
from moescope.intervene.intervene import group_by_site
from moescope.intervene.matched import matched_sets, norm_ratio
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.replicas import Progress
from moescope.intervene.running_text import LOSS, RunningText
from moescope.intervene.together import run_together
from moescope.studies.circuits.causal_values import ABLATION_MODES, AblationMode, class_means, task_replacement
from moescope.studies.circuits.trial import Trial, prepare_trial
from moescope.types import Neuron, Site, Task

if TYPE_CHECKING:
    from moescope.models import LoadedModel

HIGHER_IS_HARM = (LOSS,)


class NeuronAblation:
    """One task's circuit cut to each k, and matched random sets cut to each k, as interventions (number 0: none).

    Args:
        ranking: neurons, best first, found on the trial's selection texts alone.
        norms, means: as :func:`ablation_study`.

    Raises:
        InputError: K beyond the ranking or the layer, or a neuron the model lacks.
    """

    def __init__(
        self,
        model: LoadedModel,
        trial: Trial,
        ranking: Sequence[Neuron],
        *,
        ks: Sequence[int],
        mode: AblationMode,
        n_random: int,
        norms: Mapping[Site, np.ndarray] | None = None,
        means: Mapping[Site, np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        self._model, self._trial, self._mode, self._ks = model, trial, mode, list(ks)
        self._circuit = list(ranking[: self._ks[-1]])
        vectors = {site: trial.vectors[site] for site in group_by_site(model, self._circuit)}
        if norms is None:
            norms = {site: np.sqrt(np.square(x, dtype=np.float64).mean(0)) for site, x in vectors.items()}
        self._norms = norms
        self.random = matched_sets(self._circuit, norms, n_sets=n_random, seed=seed)
        # interventions in order: none, the circuit cut to each k, each random set cut to each k
        self._neurons: list[list[Neuron]] = [
            [], *(self._circuit[:k] for k in ks), *(members[:k] for k in ks for members in self.random)
        ]  # fmt: skip
        self._rng = np.random.default_rng([seed, 1])
        values = task_replacement(mode, vectors, trial.split, self._rng)
        if mode == "mean" and means is not None:
            values = {site: torch.as_tensor(np.asarray(means[site]), dtype=torch.float32) for site in vectors}
        self._vectors = vectors
        self.sets = NeuronSets(model, self._neurons, values)

    @property
    def sites(self) -> list[Site]:
        return list(self._vectors)

    def proof(self) -> dict[str, Any]:
        """That no random set is the circuit: none of its neurons is the circuit's own."""
        own = set(self._circuit)
        shared = sum(bool(own & set(members)) for members in self.random)
        return {"differs": shared == 0, "evidence": f"{shared} of {len(self.random)} random sets hold a neuron of the circuit"}

    def on_text(self, text: RunningText) -> NeuronSets:
        """The same sets, with the values that they take on other text."""
        split = self._trial.split
        by_class = {site: class_means(x, split.fit_labels, split.n_classes) for site, x in self._vectors.items()}
        return NeuronSets(self._model, self._neurons, text.replacement(self._mode, by_class, self._rng))

    def table(self, scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """What :func:`ablation_study` gives, from the scores (S, N) of every intervention."""
        records = []
        n_random = len(self.random)
        for place, k in enumerate(self._ks):
            ratio = norm_ratio(self._circuit[:k], [members[:k] for members in self.random], self._norms)
            for target, score in scores.items():
                mean = score.mean(1, dtype=np.float64)  # (S,)
                first = 1 + len(self._ks) + place * n_random
                row = summary(target, mean[0], mean[1 + place], mean[first : first + n_random])
                records.append({"task": self._trial.task.name, "k": k, "mode": self._mode, **row, "norm_ratio": ratio})
        return pd.DataFrame.from_records(records)


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
    ks = check_options(ks, len(ranking), mode, n_random, positions)
    sites = list(group_by_site(model, ranking[: ks[-1]]))
    trial = prepare_trial(
        model, task, sites, selection=selection, seed=seed, batch_tokens=batch_tokens, max_tokens=max_tokens
    )  # fmt: skip
    ablation = NeuronAblation(model, trial, ranking, ks=ks, mode=mode, n_random=n_random, norms=norms, means=means, seed=seed)
    text = None
    if wikitext is not None and model.has_head and not model.is_encoder:
        text = RunningText(model, wikitext, tokens=text_tokens, batch_tokens=batch_tokens, max_tokens=max_tokens)
    replicas = trial.replicas(positions=positions, batch_tokens=batch_tokens)
    whole = len(trial.evaluated) + (0 if text is None else len(text))

    def after(texts: int) -> Progress | None:
        if progress is None:
            return None

        def report(done: int, total: int) -> None:
            each = total // texts_now
            progress(texts * each + done, whole * each)

        texts_now = len(trial.evaluated) if texts == 0 else len(text or ())
        return report

    (scores,) = run_together(replicas, [ablation.sets], trial.readout, after(0))
    attrs: dict[str, Any] = {
        "selection_texts": len(trial.split.fit),
        "evaluation_texts": len(trial.split.evaluate),
        "forwards": replicas.forwards,
        "one_token": replicas.one_token,
        "late_start": replicas.late_start,
    }
    if text is not None:
        (losses,) = text.losses([ablation.on_text(text)], after(len(trial.evaluated)))
        scores[LOSS] = losses
        attrs |= {"wikitext_tokens": text.n_tokens, "wikitext_forwards": text.replicas.forwards}
    frame = ablation.table(scores)
    frame.attrs.update(attrs)
    return frame


def summary(target: str, baseline: float, ablated: float, random: np.ndarray) -> dict[str, Any]:
    """One target's effect beside those of the random interventions (R,)."""
    effects = np.asarray(random, dtype=np.float64) - baseline
    harm = 1.0 if target in HIGHER_IS_HARM else -1.0
    return {
        "target": target,
        "off_task": target in HIGHER_IS_HARM,
        "baseline": float(baseline),
        **against_random(float(ablated - baseline), effects, harm=harm),
    }


def check_options(ks: Sequence[int], ranked: int, mode: str, n_random: int, positions: str = "final") -> list[int]:
    """The circuit sizes, ascending.

    Raises:
        InputError: naming the parameter.
    """
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
