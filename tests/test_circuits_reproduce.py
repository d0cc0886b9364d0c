"""The published settings on the embedded model: published figures next to measured ones, and what stands in for what."""

from __future__ import annotations

import math
from collections.abc import Iterator

import datasets
import pytest

from moescope.studies.circuits import CircuitSettings, published
from moescope.studies.circuits.reproduce import reproduce_circuits
from moescope.study.result import StudyResult
from moescope.study.run import Run

PUBLISHED = CircuitSettings(
    ks=(1, 2, 3, 5, 10), sigma="total", selection="global", n_permutations=19, n_label_permutations=0, n_random=20, twin=False
)  # fmt: skip


@pytest.fixture(scope="module")
def result() -> Iterator[StudyResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield reproduce_circuits(settings=PUBLISHED, run=Run(limit=60))


def test_it_says_what_stands_in(result: StudyResult) -> None:
    assert result.meta["title"] == "Published circuits beside dense-tiny"
    model, task, dtype = result.meta["notes"]
    assert dtype == "Note: dense-tiny: weights stored in bf16 were computed in float32 (dtype)"
    assert "no model was named, so the embedded dense-tiny stands in for Llama-2-7B, Mistral-7B and Qwen2.5-7B" in model
    assert "uci-sentiment stands in for the task sentiment" in task
    settings = result.meta["settings"]
    assert (settings["selection"], settings["sigma"], settings["classifier"]) == ("global", "total", "lda")


def test_every_published_figure_has_a_measured_one(result: StudyResult) -> None:
    table = result.tables["published"].set_index("figure")
    assert table.loc["accuracy, certainty circuit on certainty", ["Llama-2", "Mistral", "Qwen-2.5", "mean"]].tolist() == [
        0.787, 0.967, 0.834, 0.863,
    ]  # fmt: skip
    assert table.loc["certainty, 5 neurons: coverage", "Mistral"] == 0.999
    there = table.drop(index=[f"distance of class means on PC1, {name}" for name in ("TriviaQA", "BoolQ")])
    assert there["measured"].notna().all()
    assert len(there) == 4 + 2 * 5 + 2 + 1 + 1 + 1
    own = result.tables["accuracy"].query("task == 'sentiment' and k == 10 and selection == 'global' and classifier == 'lda'")
    assert table.loc["accuracy, sentiment circuit on sentiment", "measured"] == own["accuracy"].iloc[0]
    cross = result.tables["cross_task"].set_index(["source", "target", "method"])["value"]
    transferred = cross[("certainty", "sentiment", "transfer_accuracy")]
    assert table.loc["accuracy, certainty circuit on sentiment", "measured"] == transferred
    ratio = cross[("certainty", "certainty", "transfer_accuracy")] / transferred
    assert table.loc["specialization ratio, certainty", "measured"] == pytest.approx(ratio)


def test_claims_carry_the_published_figure_of_their_task(result: StudyResult) -> None:
    value = {c.statement: None if c.published is None else c.published.value for c in result.claims}
    assert value["certainty: 10 neurons tell the classes apart"] == pytest.approx(0.863)
    assert value["sentiment: 10 neurons tell the classes apart"] == pytest.approx(0.748)
    assert value["certainty: 2 neurons tell the classes apart as well as a whole layer"] == pytest.approx(0.977)
    assert value["sentiment: 2 neurons tell the classes apart as well as a whole layer"] is None
    (early,) = [value[s] for s in value if s.startswith("sentiment: the first layers")]
    assert early == "71.9% of 78.1% at 28% of the depth"
    assert all("Choi" in c.published.source for c in result.claims if c.published is not None)


def test_table_four_is_tested_where_its_tasks_can_be_had(result: StudyResult) -> None:
    rows = {c.statement.partition(":")[0]: c for c in result.claims if c.id == "H10"}
    assert set(rows) == {"certainty", "sentiment", "truthfulqa", "triviaqa", "boolq"}
    assert rows["truthfulqa"].outcome != "not tested"
    assert rows["truthfulqa"].p is not None
    for name, said in (("triviaqa", "TriviaQA"), ("boolq", "BoolQ")):
        assert (rows[name].outcome, rows[name].words) == ("not tested", f"{said} is out of reach here")
    measured = result.tables["published"].set_index("figure")["measured"]
    assert measured["distance of class means on PC1, TruthfulQA"] > 0


def test_the_record_is_consistent_with_itself() -> None:
    """The symmetry score's formula, found from the published values, gives them; ratios are of the rounded accuracies."""

    def score(cells: dict[str, float]) -> float:
        return abs(cells["cert_cert"] - cells["sent_sent"]) + abs(cells["cert_sent"] - cells["sent_cert"])

    by_model = published.RECORD["cross_task_accuracy"]
    assert score(by_model["Mistral"]) == pytest.approx(published.RECORD["symmetry_score"]["mistral"], abs=0.005)
    mean_score = sum(score(by_model[name]) for name in ("Llama-2", "Mistral", "Qwen-2.5")) / 3
    assert mean_score == pytest.approx(published.SYMMETRY, abs=0.01)
    mean = published.RECORD["cross_task_accuracy"]["mean"]
    assert mean["cert_cert"] / mean["cert_sent"] == pytest.approx(published.RATIO["certainty"], abs=0.05)
    for cell in ("cert_cert", "cert_sent", "sent_sent", "sent_cert"):
        models = [published.RECORD["cross_task_accuracy"][m][cell] for m in ("Llama-2", "Mistral", "Qwen-2.5")]
        assert math.isclose(sum(models) / 3, mean[cell], abs_tol=0.001)
