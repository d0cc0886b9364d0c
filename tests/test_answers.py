"""Questions that a model answers by itself: what counts as right, what is kept, what its neurons say beyond its confidence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import moescope
from moescope.capture.answers import answered
from moescope.models import LoadedModel, from_model
from moescope.stats import auroc, class_weights
from moescope.studies.circuits.answers import at_least_chance, held_out, placements, rivals_of
from moescope.tasks import surface_baselines
from moescope.tasks.answered import Answered
from moescope.tasks.questions import CHECKS, Questions

N, WIDTH = 160, 16
SAYS, KNOWS = 3, 11  # coordinates: which answer is given, and whether that is the right one
SETTINGS = moescope.CircuitSettings(
    k=2, ks=(1, 2), twin=False, examples=0, n_permutations=99, n_label_permutations=99, n_random=20
)


@cache
def writer(certain: bool = False) -> LoadedModel:
    """A llama that answers each of N words with yes or no by the sign of one coordinate of it, and does next to nothing else.

    Another coordinate is random, +1 or -1. ``certain``: the answer is always yes, and the less sure the lower the second is.
    """
    torch.manual_seed(0)
    names = ["<pad>", "yes", "no", *(f"w{i}" for i in range(N))]
    inner = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.02, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        words, head = model.model.embed_tokens.weight, model.lm_head.weight
        words.normal_(std=0.5)
        knows = signs(1)
        words[3:, SAYS] = 2 + knows if certain else 2 * signs(0)
        words[3:, KNOWS] = 0 if certain else knows
        head.zero_()
        head[1, SAYS], head[2, SAYS] = 2.0, -2.0
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>")
    return from_model(model, tokenizer, name="writer")


def signs(seed: int) -> torch.Tensor:
    """(N,) +1 or -1, half of each."""
    return torch.as_tensor(np.random.default_rng(seed).permutation([1.0, -1.0] * (N // 2)), dtype=torch.float32)


def asked(right: torch.Tensor, said: torch.Tensor | None = None, **options: str) -> Questions:
    """N questions of one word; ``right`` (N,) above 0: the answer that counts is what the model says."""
    says = signs(0) if said is None else said
    rows = [
        {"text": f"w{i}", "answer": "yes" if (a > 0) == (b > 0) else "no", "difficulty": ["easy", "hard"][i % 2]}
        for i, (a, b) in enumerate(zip(says.tolist(), right.tolist(), strict=True))
    ]
    task = moescope.load_task(rows, name="words", kind="answers", new_tokens="1", **options)
    assert isinstance(task, Questions)
    return task


def claim_of(result: moescope.StudyResult, words: str) -> moescope.Claim:
    return next(claim for claim in result.claims if words in claim.statement)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOESCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


@cache
def studied(case: str) -> moescope.StudyResult:
    match case:
        case "knows":  # a coordinate tells whether the answer is right; neither the answer nor its odds do
            return moescope.circuits(writer(), asked(signs(1)), SETTINGS)
        case "random":  # nothing tells
            return moescope.circuits(writer(), asked(signs(2)), SETTINGS)
        case _:  # what tells is how sure the answer is
            return moescope.circuits(writer(certain=True), asked(signs(1), torch.ones(N)), SETTINGS)


def test_a_neuron_that_knows_is_found_beyond_the_answers_own_odds() -> None:
    result = studied("knows")
    for words in ("own log-probability and entropy", "difficulty together"):
        claim = claim_of(result, words)
        assert (claim.id, claim.outcome) == ("H19", "holds")
        assert claim.measured > 0.95
        assert 0.35 < claim.control.value < 0.65  # type: ignore[union-attr, operator]
    assert any(neuron.index == KNOWS for neuron in result.circuits["words"].neurons)
    assert claim_of(result, "share of the questions").measured == pytest.approx(0.5)
    controls = result.table("controls").set_index("control")
    assert controls.loc["answer: mean log-probability", "balanced"] < 0.65
    assert controls.loc["difficulty", "balanced"] < 0.65
    rivals = result.table("beyond_answers").set_index("rival")
    assert set(rivals.index) == {
        "log-probability and entropy", "length of question and answer", "its own words", "difficulty", "all of these"
    }  # fmt: skip
    assert rivals.loc["log-probability and entropy", "n_draws"] == rivals.loc["all of these", "n_draws"] == 99
    proofs = {row["control"]: row["evidence"] for row in result.meta["controls"]}
    assert "each within one of 8 strata" in proofs["words: labels permuted among answers alike in log-probability and entropy"]


def test_where_nothing_knows_nothing_is_found() -> None:
    result = studied("random")
    for words in ("own log-probability and entropy", "difficulty together"):
        claim = claim_of(result, words)
        assert claim.outcome in ("inconclusive", "contradicted")
        assert claim.p > 0.05  # type: ignore[operator]


def test_what_the_answers_odds_tell_already_is_not_counted_as_the_circuits() -> None:
    result = studied("certain")
    claim = claim_of(result, "own log-probability and entropy")
    assert claim.control.value > 0.95  # type: ignore[union-attr, operator]
    assert (claim.outcome, claim.explanation) == ("contradicted", "trivial cue")
    handful = claim_of(result, "2 neurons tell the classes apart")
    assert handful.explanation == "trivial cue"
    assert "answer: " in handful.words
    controls = result.table("controls").set_index("control")
    assert controls.loc["answer: mean log-probability", "balanced"] > 0.95
    # among answers of like confidence all are right or all wrong, so that no label can move
    assert result.table("beyond_answers").set_index("rival").loc["log-probability and entropy", "n_draws"] == 0


def rival_auroc(task: Answered, rival: str) -> float:
    y, folds = np.array([e.label for e in task.examples]), np.arange(len(task)) % 5
    alone, _ = held_out(rivals_of(task)[rival], np.zeros((len(y), 1)), np.zeros((5, 1), np.int64), y, folds)
    return float(auroc(alone, y))


def test_difficulty_that_decides_is_told_by_difficulty() -> None:
    found = answered(writer(), asked(torch.tensor([1.0, -1.0] * (N // 2))))
    table = surface_baselines(found, np.arange(N) // 2 % 5).set_index("control")
    assert table.loc["difficulty", "accuracy"] == 1.0
    assert table.loc["answer: mean log-probability", "accuracy"] < 0.65
    assert rival_auroc(found, "difficulty") == 1.0
    assert 0.35 < rival_auroc(found, "log-probability and entropy") < 0.65


def test_where_one_answer_is_always_right_the_answers_words_tell() -> None:
    task = asked(signs(0))  # what is right is always yes
    assert set(task.accepted_of.values()) == {("yes",)}
    found = answered(writer(), task)
    assert "its own words" in rivals_of(found)
    assert rival_auroc(found, "its own words") == 1.0
    assert surface_baselines(found, np.arange(N) % 5).set_index("control").loc["answer: its first word", "accuracy"] == 1.0


def test_an_answer_is_read_at_its_own_end() -> None:
    task = asked(signs(1), at="answer")
    found = answered(writer(), task)
    assert [e.text for e in found.examples[:2]] == [f"w{i} {found.answers_given[i].text}" for i in range(2)]
    assert all(len(ids) == 2 and ids[1] in (1, 2) for ids in found.ids_of.values())
    before = answered(writer(), asked(signs(1)))
    assert [e.label for e in found.examples] == [e.label for e in before.examples]
    assert all(len(ids) == 1 for ids in before.ids_of.values())


def test_log_probability_and_entropy_are_those_of_the_model() -> None:
    model = writer()
    found = answered(model, asked(signs(1))).answers_given[5]
    with torch.no_grad():
        log_p = model.module(input_ids=torch.tensor([[3 + 5]])).logits[0, -1].log_softmax(-1)
    assert found.log_probability == pytest.approx(float(log_p.max()), abs=1e-5)
    assert found.entropy == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-5)


def test_answers_are_written_once_and_a_damaged_copy_is_written_anew(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = writer()
    written: list[int] = []
    generate = type(model.module).generate

    def counted(self: Any, ids: torch.Tensor, **more: Any) -> Any:
        written.append(len(ids))
        return generate(self, ids, **more)

    monkeypatch.setattr(type(model.module), "generate", counted)
    first = answered(model, asked(signs(1)))
    assert sum(written) == N
    (kept,) = own_cache.iterdir()
    again = answered(model, asked(signs(2)))  # other answers count as right: the model's own are the same
    assert sum(written) == N
    assert [a.text for a in first.answers_given] == [a.text for a in again.answers_given]
    assert [e.label for e in first.examples] != [e.label for e in again.examples]
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(moescope.errors.Note, match="damaged; they are written anew"):
        mended = answered(model, asked(signs(1)))
    assert sum(written) == 2 * N
    assert kept.read_bytes() == whole
    assert mended.answers_given == first.answers_given
    answered(writer(certain=True), asked(signs(1), torch.ones(N)))
    assert sum(written) == 3 * N
    assert len(list(own_cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("check", "answer", "accepted", "right"),
    [
        ("exact", "The  Eiffel tower.", "eiffel Tower", True),
        ("exact", "Eiffel tower in Paris", "eiffel tower", False),
        ("first", "Yes, because it is", "yes", True),
        ("first", "Yesterday", "yes", False),
        ("contains", "I think it is New York.", "new york", True),
        ("contains", "New Yorkers", "new york", False),
        ("number", "1,234. The rest", "1234", True),
        ("number", "12 of 46", "46", False),
        ("number", "−3", "-3", True),
        ("number", "none", "0", False),
        ("last-number", "12 + 34 = 46.0", "46", True),
        ("last-number", "46, then 7", "46", False),
    ],
)
def test_what_counts_as_right(check: str, answer: str, accepted: str, right: bool) -> None:
    assert CHECKS[check](answer, accepted) is right


def test_an_own_checker_decides() -> None:
    found = moescope.answered(
        writer(), asked(signs(1)), is_right=lambda question, answer: (question < "w5") == (answer == "yes")
    )
    says = ["yes" if sign > 0 else "no" for sign in signs(0)]
    assert [a.text for a in found.answers_given] == says
    assert [e.label for e in found.examples] == [int((f"w{i}" < "w5") == (says[i] == "yes")) for i in range(N)]


def test_made_sums_are_right_seeded_and_of_graded_length() -> None:
    task = moescope.load_task("sums=arithmetic?digits=1-2&operation=subtract&rows=60")
    assert isinstance(task, Questions)
    assert set(task.difficulty_of.values()) == {"1 and 1 digit", "2 and 1 digits", "2 and 2 digits"}
    for example in task.examples:
        sum_ = example.text.splitlines()[-1].removesuffix("=")
        a, b = (int(n) for n in sum_.split("-"))
        assert task.accepted_of[example.text] == (str(a - b),)
        assert example.group == f"{a} - {b}"
        assert sum_.strip() not in "\n".join(example.text.splitlines()[:-1])
    assert task == moescope.load_task("sums=arithmetic?digits=1-2&operation=subtract&rows=60")
    assert task != moescope.load_task("sums=arithmetic?digits=1-2&operation=subtract&rows=60&seed=1")


def test_a_task_of_classes_that_asks_becomes_one_of_answers() -> None:
    task = moescope.load_task("uci-sentiment?kind=answers&limit=40")
    classes = moescope.load_task("uci-sentiment?template=question&limit=40")
    assert isinstance(task, Questions)
    assert [task.accepted_of[e.text] for e in task.examples] == [(("negative", "positive")[e.label],) for e in classes.examples]
    assert task.check == "first"


def test_a_rival_that_is_worse_than_a_guess_counts_as_a_guess() -> None:
    y, scores = np.array([0, 1] * 20), np.arange(40.0)
    scores[y == 1] -= 40
    assert auroc(scores, y) == 0
    assert auroc(at_least_chance(scores, y), y) == 0.5
    assert at_least_chance(-scores, y) == pytest.approx(-scores)


def test_placements_have_the_auroc_as_their_mean() -> None:
    rng = np.random.default_rng(0)
    y = np.array([0, 1, 1] * 50)
    scores = np.round(rng.normal(size=150) + 0.7 * y, 1)
    weighed = placements(scores, y) * class_weights(y)
    assert weighed.mean() == pytest.approx(auroc(scores, y))
    draws = [float(auroc(s, y)) for s in (rng.normal(size=(2000, 150)) + 0.7 * y)]
    assert weighed.std() / np.sqrt(len(y)) == pytest.approx(np.std(draws), rel=0.2)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("arithmetic?digits=3-1", "digits='3-1' is not a range"),
        ("arithmetic?rows=3", "rows='3' is not a whole number from 12"),
        ("arithmetic?operation=divide", "operation='divide' is not one of add, subtract, multiply"),
        ("arithmetic?check=like", "check='like' is not one of"),
        ("arithmetic?new_tokens=0", "new_tokens='0' is not a whole number from 1"),
        ("arithmetic?template={question} {answer}", "template has unknown field 'answer'"),
        ("uci-sentiment?check=exact", "check= is of questions for a model to answer; add kind=answers"),
        ("uci-sentiment?kind=answers&template=bare", "kind=answers needs a template that asks"),
        ("halueval?at=answer", "at= is of questions"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(spec: str, said: str) -> None:
    with pytest.raises(moescope.InputError) as caught:
        moescope.load_task(spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_without_an_answer_are_refused_by_their_place() -> None:
    with pytest.raises(moescope.InputError, match=r"row 1: column 'answer' holds no answer"):
        moescope.load_task([{"text": "a", "answer": "b"}, {"text": "c", "answer": None}], kind="answers")
    with pytest.raises(moescope.InputError, match=r"row 0: the answer 'b' is no number; use check=exact"):
        moescope.load_task([{"text": "a", "answer": "b"}], kind="answers", check="number")


def test_a_label_beside_a_column_of_answers_is_refused() -> None:
    with pytest.raises(moescope.InputError, match=r"label= is of classes; name the word of each by answers="):
        moescope.load_task([{"text": "a", "answer": "b", "y": 1}], kind="answers", label="y")


def test_all_right_or_all_wrong_is_refused_before_the_study() -> None:
    task = asked(signs(1))
    for accepted, said in (("yes or no", "answers none of 160 questions rightly"), (None, "answers all of 160")):
        given = dict.fromkeys(task.accepted_of, (accepted,) if accepted else ("yes", "no"))
        with pytest.raises(moescope.InputError, match=said) as caught:
            moescope.circuits(writer(), replace(task, accepted_of=given), SETTINGS)
        assert "\n" not in str(caught.value)


def test_too_few_of_a_kind_and_other_studies_are_refused() -> None:
    task = asked(signs(1))
    rare = replace(task, accepted_of={q: ("yes", "no") if i > 3 else ("maybe",) for i, q in enumerate(task.accepted_of)})
    with pytest.raises(
        moescope.InputError, match="4 of 160 answers are wrong, and 5 folds need 10; give more questions, or harder"
    ):
        moescope.circuits(writer(), rare, SETTINGS)
    with pytest.raises(moescope.InputError, match="questions: str is no task of questions; load one with kind=answers"):
        moescope.answered(writer(), "words")  # type: ignore[arg-type]
    with pytest.raises(moescope.InputError, match="position: 'words' says itself where it is read"):
        moescope.circuits(writer(), task, replace(SETTINGS, position="mean"))
    with pytest.raises(moescope.InputError, match="has questions for a model to answer; exit takes classes of texts alone"):
        moescope.exit(writer(), task)
