"""What the source reports: Choi (2025), "Hidden Mixture-of-Experts", doi 10.5281/zenodo.17381003.

The full record is in `study/published`; the names below are the figures that claims stand beside: means over Llama-2-7B,
Mistral-7B and Qwen2.5-7B where all three are reported, else Mistral-7B's.
"""

from __future__ import annotations

from moescope.study.published import record

RECORD = record("hidden_moe")
SOURCE = "Choi (2025)"

_mean = RECORD["cross_task_accuracy"]["mean"]
_exit = RECORD["early_exit_mistral"]
TASKS = ("certainty", "sentiment")
ACCURACY = {"certainty": _mean["cert_cert"], "sentiment": _mean["sent_sent"]}
SIZES = {int(k): cell for k, cell in RECORD["circuit_size_mistral_certainty"].items() if k.isdecimal()}
SHARE = "0.0015–0.004 %"
"""Of all neurons, that are enough (section 1.2)."""
TWO_NEURONS = {"certainty": SIZES[2][0]}
CROSS = {("certainty", "sentiment"): _mean["cert_sent"], ("sentiment", "certainty"): _mean["sent_cert"]}
RATIO = {task: RECORD["specialization_ratio"][task][0] for task in TASKS}
DEPTH = {task: (_exit[task]["layers_0_8"], _exit[task]["layers_0_31"]) for task in TASKS}
SYMMETRY = RECORD["symmetry_score"]["mean"]
COLUMN = {task: RECORD["columns_mistral"][task]["of_top10"] for task in TASKS}
EARLY_EXIT_FRACTION = _exit["compute_at_layer_8"]
STRATA = {"certainty": ("early", "layers 0–8"), "sentiment": ("late", "layers 13–31")}
PAIR = {"certainty": "3842 and 3944 of layer 9"}
PC1 = {"truthfulqa": "TruthfulQA", "triviaqa": "TriviaQA", "boolq": "BoolQ"}
"""Preset of each task of table 4, and its name there."""
