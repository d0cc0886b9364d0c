"""The study from end to end on tiny models, its splice and readings, the command line, and data whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.dictionary import DictionarySettings, DictionaryTeacher, dictionary_pairs
from moescope import load as load_result
from moescope.errors import InputError
from moescope.studies.distill.claims import distill_claims
from moescope.studies.distill.comparisons import ratio_table
from moescope.studies.distill.controls import control_pairs
from moescope.studies.distill.data import scaling_of
from moescope.studies.distill.evaluate import evaluate, fvu
from moescope.studies.distill.evidence import Evidence
from moescope.studies.distill.published import RECORD, headline, table_ratio
from moescope.studies.distill.reading import read_experts
from moescope.studies.distill.reproduce import published_table, reproduce
from moescope.studies.distill.save import load_student
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.splice import splice_table, spliced
from moescope.studies.distill.students import LayerShape, Student
from moescope.studies.distill.study import distill
from moescope.studies.distill.teacher import Teacher
from moescope.studies.distill.training import Job, TrainSettings, train
from moescope.study.names import slug
from moescope.study.verdicts import verdicts
from moescope.types import Claim
from tests.architectures import tiny_model

TEXTS = [f"{'some words ' * (i % 5 + 2)}and number {i}" for i in range(80)]
SMALL = {"experts": 36, "active": (2, 4), "rank": 6, "lr": (1e-2,), "seeds": 2, "steps": 12, "batch": 256}


@pytest.fixture(scope="module")
def study():
    model = tiny_model("llama", head=True)
    settings = DistillSettings(
        layer=1, router=("low-rank", "product-key"), transcoders=True, control=("gaussian", "twin"), **SMALL
    )
    return distill(model, TEXTS, settings)


def test_students_that_all_diverge_are_refused() -> None:
    with pytest.raises(InputError, match="lr: every student diverged"):
        distill(tiny_model("llama", head=True), TEXTS, DistillSettings(layer=1, **(SMALL | {"lr": (1e30,)})))


def test_result_has_every_student_on_every_source(study) -> None:
    result = study
    summary = result.table("summary")
    assert set(summary["data"]) == {"activations", "gaussian", "twin"}
    counts = summary.groupby("data")["student"].nunique()
    assert counts.nunique() == 1
    assert set(result.artifacts) == {f"students/{slug(name)}" for name in summary["student"]}
    assert (summary["seeds"] == 2).all()
    moe = summary[summary["kind"] == "moe"]
    assert set(moe["active_neurons"]) == {4, 8}
    assert (moe["multiply_adds"] > moe["router_multiply_adds"]).all()
    ratio = result.table("ratio")
    row = ratio[(ratio["data"] == "gaussian") & (ratio["student"].str.startswith("moe 2+2"))].iloc[0]
    runs = result.table("students").query("data == 'gaussian' and chosen").set_index(["student", "seed"])["fvu"]
    assert row["by_seed"] == pytest.approx([runs["dense 4", seed] / runs[row["student"], seed] for seed in (0, 1)])
    assert row["ratio"] == pytest.approx(runs["dense 4"].mean() / runs[row["student"]].mean())
    assert {"linear", "token mean", "token embedding, linear"} <= set(result.table("baselines")["baseline"])


def test_result_is_saved_drawn_and_read_back(study, tmp_path: Path) -> None:
    result = study
    assert {"fvu", "cost", "training", "load", "splice"} <= set(result.figures)
    result.save(tmp_path / "out")
    assert load_result(tmp_path / "out") == result
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_the_rows_and_the_controls_are_on_record(study) -> None:
    held, real, twin = study.rows
    assert (held["fit"]["rows"], held["judge"]["rows"]) == (76, 4)
    assert real["name"] == "texts of tiny-llama"
    assert {role: entry["sha256"] for role, entry in real.items() if role != "name"} == {
        role: entry["sha256"] for role, entry in twin.items() if role != "name"
    }
    assert real["fit"]["rows"] + real["select"]["rows"] + real["judge"]["rows"] == 76
    gaussian, other = study.meta["controls"]
    assert (gaussian["control"], other["control"]) == ("gaussian", "twin")
    assert "inputs differ by" in gaussian["evidence"]
    assert study.meta["fingerprint"] in other["evidence"]


def test_every_claim_of_a_gain_stands_beside_the_gaussian_one(study) -> None:
    gains = [c for c in study.claims if c.id == "M1"]
    assert len(gains) == 8  # two sizes; two routers, two transcoders
    assert all(c.control is not None and c.interval is not None for c in gains)
    # two seeds after twelve steps decide nothing
    assert {c.outcome for c in study.claims if c.id in ("M1", "M2")} <= {"undertrained", "not tested"}
    assert any(c.statement.startswith("multiply-adds of") for c in study.claims)


_SETTINGS = DistillSettings(layer=0, experts=1000, active=(32,), rank=64, router=("low-rank", "full"))
_MOE, _FULL = (n for n in _SETTINGS.students() if n.startswith("moe"))


def _claims(
    gain: float = 0.7, gaussian: float = 0.05, *, linear: float = 0.9, full: float = 0.7, seeds: int = 3, noise: float = 0.1
) -> list[Claim]:
    """Of a made-up study with students of 64 active neurons, whose errors on 60 documents are in these dense/MoE log ratios.

    ``full``: that of the student with a full router.
    """
    rng, rows = np.random.default_rng(0), []
    for data, gains in (("activations", {_MOE: gain, _FULL: full}), ("gaussian", {_MOE: gaussian, _FULL: full})):
        size = np.exp(rng.normal(0, 0.7, 60))
        for name, log in {"dense 64": 0.0, **gains}.items():
            for seed in range(seeds):
                error = 0.6 * size / size.sum() * np.exp(-log + noise * rng.normal(size=60))
                rows += [(data, name, seed, document, 50, e) for document, e in enumerate(error)]
    documents = pd.DataFrame(rows, columns=["data", "student", "seed", "document", "vectors", "error"])
    runs = documents.groupby(["data", "student", "seed"], sort=False)["error"].sum().groupby(["data", "student"], sort=False)
    summary = runs.agg(fvu="mean", worst="max").reset_index()
    dense = summary["student"] == "dense 64"
    summary = summary.assign(
        kind=np.where(dense, "dense", "moe"), router=None, active_neurons=64, dead=np.where(dense, np.nan, 0.6)
    ).assign(multiply_adds=np.where(dense, 70_000, 70_001))
    students = [
        {"status": "trained", "student": s, "lr": lr, "data": "activations", "chosen": lr == best}
        for s, best in ((_MOE, 0.1), ("dense 64", 0.3))
        for lr in (0.03, 0.1, 0.3)
    ]
    tables = {
        "documents": documents,
        "summary": summary,
        "ratio": ratio_table(summary, documents),
        "baselines": pd.DataFrame([{"data": d, "baseline": "linear", "fvu": linear} for d in ("activations", "gaussian")]),
        "students": pd.DataFrame(students),
    }
    return verdicts(distill_claims(Evidence(tables, _SETTINGS), LayerShape(256, 256, "silu", True), 640))


def _about(claims: list[Claim], id: str, words: str) -> Claim:
    return next(c for c in claims if c.id == id and words in c.statement and _MOE in c.statement)


@pytest.mark.parametrize(
    ("how", "gain", "excess", "none"),
    [
        ({"gaussian": 0.1}, "holds", "holds", "contradicted"),
        ({"gaussian": 0.01}, "holds", "holds", "holds"),
        ({"gaussian": 0.7}, "holds", "contradicted", "contradicted"),
        ({"gain": 0.01, "gaussian": 0.0}, "contradicted", "contradicted", "holds"),
        ({"gain": -0.1, "gaussian": -0.5, "linear": 2.0}, "contradicted", "holds", "holds"),
        ({"linear": 0.5}, "undertrained", "undertrained", "undertrained"),
        ({"seeds": 2}, "not tested", "not tested", "not tested"),
        ({"gain": 0.05, "gaussian": 0.0, "noise": 2.0, "linear": 99.0}, "inconclusive", "inconclusive", "inconclusive"),
    ],
)
def test_verdicts(how, gain, excess, none) -> None:
    claims = _claims(**how)
    first = _about(claims, "M1", "on activations")
    assert first.outcome == gain
    assert first.published == headline("activations")
    assert "60% of the experts are dead" in first.words or gain == "not tested"
    more = _about(claims, "M2", "gain more")
    assert more.outcome == excess
    assert more.explanation == ("chance" if excess == "contradicted" else None)
    assert _about(claims, "M2", "explains as much").outcome == none
    if gain == "undertrained":
        assert f"{_MOE} leaves" not in first.words
        assert "dense 64 leaves" in first.words


@pytest.mark.parametrize(
    ("full", "no_less", "more"),
    [(0.5, "holds", "holds"), (0.7, "holds", "contradicted"), (0.9, "contradicted", "contradicted")],
)
def test_a_low_rank_router_is_no_worse_than_a_full_one_or_better(full, no_less, more) -> None:
    claims = _claims(full=full)
    assert _about(claims, "M3", "explains no less").outcome == no_less
    assert _about(claims, "M3", "explains more").outcome == more


def test_what_could_not_be_tested_says_so(study) -> None:
    """No full router, no data of known sparsity."""
    for id in ("M3", "M4"):
        (claim,) = (c for c in study.claims if c.id == id)
        assert claim.outcome == "not tested"
        assert claim.words


def test_permutations_that_can_decide_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="n_permutations"):
        DistillSettings(n_permutations=19)


def test_a_learning_rate_at_the_edge_of_those_tried_is_named(study) -> None:
    """The dense student would do better at a higher rate still, which flatters the ratio."""
    (edge,) = (c for c in _claims() if "edge" in c.statement)
    assert edge.measured == 1
    assert edge.words.startswith("dense 64 on activations (lr 0.3)")
    assert not any("edge" in c.statement for c in study.claims)  # one rate tried: nothing to say


def test_published_table_and_ratios_agree(study) -> None:
    for model, value in RECORD["mlp_over_moe_at_64_active"]["gaussian"].items():
        best = max(table_ratio("gaussian", model, 64, c) for c in RECORD["columns"][1:])
        assert best == pytest.approx(value, abs=0.011)
    table = published_table(study)
    row = table[table["figure"] == "FVU, activations, 64 active, moe"].iloc[0]
    assert row["pythia-70m"] == 0.079
    assert np.isnan(row["measured"])  # this study has 4 and 8 active neurons
    assert table[table["figure"] == "FVU, gaussian, 8 active, dense"]["measured"].notna().all()


def test_reproduce_says_that_the_embedded_model_stands_in() -> None:
    result = reproduce(None, TEXTS, DistillSettings(**(SMALL | {"active": (32,), "seeds": 1})))
    assert any("dense-tiny stands in" in note for note in result.meta["notes"])
    table = result.table("published").set_index("figure")
    row = table.loc["dense / MoE, activations, 64 active"]
    assert row["pythia-410m"] == pytest.approx(0.498 / 0.28)
    assert np.isfinite(row["measured"])
    gain = next(c for c in result.claims if c.id == "M1")
    assert gain.published is not None
    assert gain.published.value == pytest.approx((1.99 + 1.79 + 2.09) / 3)
    assert not any(c.outcome == "reproduced" for c in result.claims)


# --- splice and reading --------------------------------------------------------------------------------------------------


def test_spliced_teacher_changes_nothing_and_a_student_does() -> None:
    model = tiny_model("llama", head=True)
    teacher = Teacher(model, 1)
    student = Student(StudentSpec(kind="dense", shared=4), teacher.shape)
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model.module(input_ids=ids).logits

    before = logits()
    with spliced(teacher, teacher.neurons):
        torch.testing.assert_close(logits(), before, atol=1e-4, rtol=1e-4)
    with spliced(teacher, student):
        assert not torch.allclose(logits(), before, atol=1e-3)
    assert torch.equal(logits(), before)  # the hooks are gone


def test_splice_table_is_the_models_own_loss() -> None:
    model = tiny_model("gpt2", head=True)
    teacher = Teacher(model, 1)
    students = {"s": Student(StudentSpec(kind="dense", shared=4), teacher.shape)}
    table = splice_table(teacher, students, TEXTS[:6], batch_tokens=64).set_index("layer_is")
    total = count = 0.0
    for text in TEXTS[:6]:
        ids = torch.tensor(model.tokenizer(text)["input_ids"])[None]
        with torch.no_grad():
            total += float(model.module(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert table.loc["original", "loss"] == pytest.approx(total / count, rel=1e-5)
    assert table.loc["original", "tokens"] == count
    assert table["loss"].nunique() == 3
    with pytest.raises(InputError, match="head"):
        splice_table(Teacher(tiny_model("gpt2"), 1), students, TEXTS[:2])


def test_reading_names_the_token_that_an_expert_answers() -> None:
    """A transcoder whose features 0 and 1 are the mean inputs of two tokens: the reading must say so."""
    from moescope.studies.distill.data import whole
    from moescope.studies.distill.layer_data import model_pairs

    model = tiny_model("llama")
    teacher = Teacher(model, 0)  # at the first layer the input is mostly the token's own embedding
    texts = [f"{'abcdefgh' * 3}x{'ijkl' * 2}" if i % 2 else f"{'mnopqrst' * 3}yz" for i in range(40)]
    block = whole(model_pairs(teacher, texts), "train")
    student = Student(StudentSpec(kind="transcoder", experts=12, active=1), teacher.shape, scaling_of(_as_pairs(block)))
    scaled = student.scaling.inputs(block.x)
    with torch.no_grad():
        student.experts.w_in.mul_(0.01)
        for feature, letter in enumerate("xq"):
            centre = scaled[block.tokens == model.tokenizer.convert_tokens_to_ids(letter)].mean(0)
            student.experts.w_in[feature] = centre / centre.norm()
            student.experts.bias[feature] = -0.8 * centre.norm()
    found = read_experts(teacher, student, texts, categories=["odd" if i % 2 else "even" for i in range(40)], experts=[0, 1])
    assert [tokens[0].split(" ×")[0] for tokens in found["tokens"]] == ["x", "q"]
    assert found["category"].tolist() == ["odd", "even"]
    assert (found["category_lift"] > 1.4).all()
    assert all("⟦x⟧" in context for context in found["contexts"][0])
    with pytest.raises(InputError, match="no experts"):
        read_experts(teacher, Student(StudentSpec(kind="dense", shared=2), teacher.shape), texts)


def _as_pairs(block):
    from moescope.studies.distill.data import ArrayPairs

    return ArrayPairs("block", dict.fromkeys(("train", "validation", "test"), block))


# --- known truth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [2, 4])
def test_error_collapses_at_the_sparsity_of_the_data_and_not_for_gaussian_inputs(s: int) -> None:
    """With s of 64 orthogonal atoms in an input, s features explain nearly all, and half as many far less. Gaussian inputs of
    the same mean and covariance, labelled by the same teacher, have no such number: neither trained features nor the
    teacher's own s most active neurons explain them."""
    teacher = DictionaryTeacher(DictionarySettings(atoms=64, active=s, width=64, threshold=0.2, tokens=25_000))
    sparse = dictionary_pairs(teacher)
    found: dict[str, dict[int, float]] = {}
    least: dict[str, float] = {}
    for name, pairs in (("sparse", sparse), ("gaussian", control_pairs("gaussian", sparse, teacher))):
        scaling = scaling_of(pairs)
        jobs = {
            k: Job(Student(StudentSpec(kind="transcoder", experts=128, active=k), LayerShape(64, 64), scaling), 2e-2)
            for k in (s // 2, s, 2 * s)
        }
        train(pairs, {str(k): job for k, job in jobs.items()}, TrainSettings(steps=500, batch=256, every=500))
        found[name] = {k: evaluate(job.student, pairs).fvu for k, job in jobs.items()}
        least[name] = fvu(lambda x: teacher(x, s), pairs)
    print(found, least)
    assert least["sparse"] < 1e-6
    assert least["gaussian"] > 0.3
    assert found["sparse"][s] < 0.2 < 0.35 < found["sparse"][s // 2]
    assert found["sparse"][2 * s] < 0.03
    assert found["gaussian"][s] > 0.35
    assert found["gaussian"][2 * s] > 0.15


# --- command line --------------------------------------------------------------------------------------------------------


def command(**options: object) -> list[str]:
    given = {"layer": 2, "experts": 64, "active": 2, "lr": 0.01, "steps": 3} | options
    return ["distill", "dense-tiny", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"active": "65"}, "--active: 65 of 64 experts"),
        ({"layer": "17"}, "--layer 17: dense-tiny has layers 0 to 5"),
        ({"control": "noise"}, "--control: 'noise' is none of gaussian"),
        ({"router": "best"}, "--router: 'best' is none of full"),
        ({"lr": "fast"}, "--lr: 'fast' is not a number"),
        ({"text": "no-such-file.txt"}, "--text: no-such-file.txt: no such file"),
        ({"tokens": "900000000"}, "--tokens: 900000000 vectors were asked for"),
        ({"store": "nowhere"}, "nowhere: no store of activations there"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(extra, message, capsys, tmp_path: Path) -> None:
    from moescope.cli import main

    with pytest.raises(SystemExit) as stop:
        main(command(**extra, out=tmp_path / "out"))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_command_writes_result_and_students(capsys, tmp_path: Path) -> None:
    from moescope.cli import main

    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The {i}th paragraph says that {i} and {i + 1} make {2 * i + 1}." for i in range(120)))
    main(command(text=text, seeds=1, batch=256, out=tmp_path / "out"))
    assert "error of dense 4 / moe 2+2 of 64" in " ".join(capsys.readouterr().out.split())
    result = load_result(tmp_path / "out")
    assert result.kind == "distill"
    files = sorted((tmp_path / "out" / "students").glob("*/student.safetensors"))
    assert len(files) == result.table("summary")["student"].nunique()
    moe = next(file for file in files if file.parent.name.startswith("moe_2_2_of_64"))
    assert set(result.artifacts) == {f"students/{file.parent.name}" for file in files}
    student = load_student(moe, fingerprint=result.meta["fingerprint"])
    assert student(torch.zeros(3, 256)).shape == (3, 256)
