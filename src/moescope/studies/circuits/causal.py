"""Is a circuit used? Ablate it in the running model, beside random sets of neurons that match it in layer and norm.

An effect is ablated minus clean, on texts from which neither the circuit nor the probe was learnt. Effects are lower
bounds of what the neurons do in the untouched model: later layers compensate for what was removed (McGrath, Rahtz,
Kramár, Mikulik and Legg 2023, "The Hydra effect: emergent self-repair in language model computations"). Mean ablation
is the default because zero is far from what downstream layers have seen, so that a zeroed neuron hurts whether or not
it carries the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moescope.intervene.effects import against_random
from moescope.intervene.intervene import group_by_site
from moescope.intervene.matched import matched_sets, norm_ratio
from moescope.intervene.neuron_sets import NeuronSets
from moescope.intervene.running_text import LOSS, RunningText
from moescope.studies.circuits.causal_values import AblationMode, class_means, task_replacement
from moescope.studies.circuits.trial import Trial
from moescope.types import Neuron, Site

if TYPE_CHECKING:
    from moescope.models import LoadedModel


class NeuronAblation:
    """One task's circuit cut to each k, and matched random sets cut to each k, as interventions (number 0: none).

    Args:
        ranking: neurons, best first, found on the trial's selection texts alone.
        ks: circuit sizes, ascending, none above the ranking's.
        mode: ``"mean"`` of the selection texts at the final token, ``"zero"``, ``"resample"`` (the values of a random
            selection text, one for all neurons) or ``"patch"`` (the mean of the other classes; on other text, of the
            classes in turn).
        n_random: at least 100 for a claim. The same random sets, cut to k, serve every k.

    Raises:
        InputError: too few coordinates outside the circuit to draw from, or a neuron the model lacks.
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
        seed: int = 0,
    ) -> None:
        self._model, self._trial, self._mode, self._ks = model, trial, mode, list(ks)
        self._circuit = list(ranking[: self._ks[-1]])
        vectors = {site: trial.vectors[site] for site in group_by_site(model, self._circuit)}
        norms = {site: np.sqrt(np.square(x, dtype=np.float64).mean(0)) for site, x in vectors.items()}
        self._norms = norms
        self.random = matched_sets(self._circuit, norms, n_sets=n_random, seed=seed)
        # interventions in order: none, the circuit cut to each k, each random set cut to each k
        self._neurons: list[list[Neuron]] = [
            [], *(self._circuit[:k] for k in ks), *(members[:k] for k in ks for members in self.random)
        ]  # fmt: skip
        self._rng = np.random.default_rng([seed, 1])
        self._vectors = vectors
        self.sets = NeuronSets(model, self._neurons, task_replacement(mode, vectors, trial.split, self._rng))

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
        """The dose curve, from the scores (S, N) of every intervention.

        Targets, each the mean over the texts that judge:

        - ``probe_accuracy``: a logistic probe of the last layer's residual stream at the final token, fitted on clean
          activations of the selection texts. (A circuit neuron of the last layer itself is read directly by it.)
        - ``answer_logodds``, ``answer_accuracy``: where the task has answer words and the model was loaded with its
          head, log p(first token of the true class's word) minus log of the others' sum, nats, at the final position;
          and how often the true word is the likeliest of them.
        - ``wikitext_loss``: nats per token on other text, off task. There every token but each window's first (which
          often holds attention sinks) is edited, and ``mean`` and ``resample`` take their values from that text itself.

        Returns:
            One row per k and target: task, k, mode, target, off_task, baseline, effect, random_mean, random_low,
            random_high (2.5 and 97.5 % of the random sets' effects), p = (1 + random sets at least as harmful) / (1 +
            n_random), n_random, norm_ratio (random to circuit; 1 is a perfect match).
        """
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


def summary(target: str, baseline: float, ablated: float, random: np.ndarray) -> dict[str, Any]:
    """One target's effect beside those of the random interventions (R,)."""
    effects = np.asarray(random, dtype=np.float64) - baseline
    off_task = target == LOSS
    return {
        "target": target,
        "off_task": off_task,
        "baseline": float(baseline),
        **against_random(float(ablated - baseline), effects, harm=1.0 if off_task else -1.0),
    }
