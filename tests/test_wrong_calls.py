"""A wrong call in Python is one line that names the parameter: an InputError, or Python's own TypeError for a keyword that is
not there. What a verb is given is checked before a model runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import moescope
from moescope import CircuitSettings, Run
from moescope.capture import activations, capture, encode, moments
from moescope.models import LoadedModel
from moescope.routing import RoutingTrace, TracedSequence
from moescope.routing.signatures import signatures_of
from moescope.select.ranking import divergence, fold_class_sums, permutation_max, random_sets, rank, top_k

FRAME = pd.DataFrame({"text": [f"text {i} is {'good' if i % 2 else 'bad'}" for i in range(40)], "label": [0, 1] * 20})
X, Y = np.random.default_rng(0).standard_normal((40, 30)), np.arange(40) % 2
QUICK = CircuitSettings(k=2, ks=(1, 2))
IDS = torch.ones(1, 2, dtype=torch.int64)


@cache
def model() -> LoadedModel:
    return moescope.load_model("dense-tiny")


def trace(**wrong: Any) -> RoutingTrace:
    """Three tokens of one prompt over two layers of four experts, but for what is wrong."""
    right: dict[str, Any] = {
        "layers": (0, 1),
        "n_experts": (4, 4),
        "ids": np.tile(np.array([0, 1], np.uint8), (3, 2, 1)),
        "weights": None,
        "sequence": np.zeros(3, np.int32),
        "position": np.arange(3, dtype=np.int32),
        "generated": np.zeros(3, bool),
        "tokens": None,
        "sequences": (TracedSequence("p", "a"),),
    }
    return RoutingTrace(**right | wrong)


def run_capture(*given: Any) -> Any:
    with capture(model(), "resid:0") as session:
        return session.run(*given)


def circuits(*given: Any, **named: Any) -> Any:
    return moescope.circuits(model(), *given, **named)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    # settings and run
    "settings are a dict": (lambda: circuits(FRAME, {"k": 3}), "settings: dict was given; give moescope.CircuitSettings"),
    "settings of another verb": (lambda: circuits(FRAME, moescope.ExitSettings()), "settings: ExitSettings was given"),
    "settings are a run": (lambda: circuits(FRAME, Run()), "settings: Run was given"),
    "settings are a class": (lambda: circuits(FRAME, CircuitSettings), "settings: the class CircuitSettings"),
    "settings are a number": (lambda: moescope.trace("moe-tiny", "routing-80", 32), "settings: int was given"),
    "settings of a narrower verb": (
        lambda: circuits(FRAME, moescope.SearchSettings()), "settings: SearchSettings was given; give moescope.CircuitSettings"
    ),
    "run is a folder": (lambda: circuits(FRAME, QUICK, run="out"), "run: str was given; give moescope.Run"),
    "run is a dict": (lambda: moescope.trace("moe-tiny", run={"seed": 1}), "run: dict was given"),
    "run is settings": (lambda: moescope.signatures("moe-tiny", run=QUICK), "run: CircuitSettings was given"),
    "run stands third": (lambda: circuits(FRAME, QUICK, Run()), "positional argument"),
    "a misspelt keyword": (lambda: circuits(FRAME, setings=QUICK), "setings"),
    "an option as a keyword": (lambda: circuits(FRAME, k=3), "'k'"),
    "a misspelt setting": (lambda: CircuitSettings(kk=3), "'kk'"),
    "a text for a number": (lambda: CircuitSettings(k="3"), "k: '3' is not a whole number"),
    "a number for a list": (lambda: CircuitSettings(ks=3), "ks: 3 is not a list"),
    "no such choice": (lambda: CircuitSettings(ablate="man"), "ablate: 'man' is none of mean"),
    "a site that is a number": (lambda: CircuitSettings(site=3), "site: 3 names no site"),
    "a folder that is a number": (lambda: Run(out=3), "out: 3 is not a path"),
    "a seed beyond 32 bits": (lambda: Run(seed=2**70), "seed: must be"),
    "progress is no function": (lambda: Run(progress=True), "progress: is called with"),
    # the model
    "model and tasks swapped": (lambda: moescope.circuits({"a": FRAME}, model(), QUICK), "tasks: LoadedModel is no task"),
    "no model": (lambda: moescope.circuits(None, FRAME, QUICK), "model: an object of class NoneType is no model"),
    "a model without its tokenizer": (lambda: moescope.circuits(model().module, FRAME), "model: dense-tiny has no tokenizer"),
    "the tokenizer's name": (lambda: moescope.load_model(model().module, tokenizer="gpt2"), "tokenizer: an object of class"),
    "model and tokenizer swapped": (lambda: moescope.load_model(model().tokenizer, tokenizer=model().module), "model: "),
    "a tokenizer for a name": (lambda: moescope.load_model("dense-tiny", tokenizer=model().tokenizer), "tokenizer: goes with"),
    "weights alone": (lambda: moescope.load_model(model().module.state_dict()), "OrderedDict is no model"),
    "no such precision": (lambda: moescope.load_model("dense-tiny", dtype=16), "dtype 16 is unknown"),
    "no such device": (lambda: moescope.load_model("dense-tiny", device=0), "device 0 is unknown"),
    # tasks and prompts
    "tasks are a number": (lambda: circuits(3, QUICK), "tasks: int is no task"),
    "no tasks": (lambda: circuits({}, QUICK), "tasks: at least 1 needed"),
    "a task without a name": (lambda: circuits({"": FRAME}, QUICK), "name: "),
    "a task's name is a number": (lambda: circuits({1: FRAME}, QUICK), "name: a task's name is a text, not 1"),
    "no labels": (lambda: circuits({"a": FRAME[["text"]]}, QUICK), "no column 'label'"),
    "labels that are continuous": (lambda: circuits(FRAME.assign(label=np.linspace(0, 1, 40)), QUICK), "looks continuous"),
    "an array for texts": (lambda: circuits({"a": X}, QUICK), "ndarray: row 0: ndarray is no row"),
    "a limit that is a text": (lambda: moescope.load_task("halueval", limit="all"), "limit: 'all' is not a whole number"),
    "half an example": (lambda: moescope.load_task("halueval", limit=20.5), "limit: 20.5 is not a whole number"),
    "a seed that is a text": (lambda: moescope.load_task("halueval", limit=20, seed="x"), "seed: 'x' is not"),
    "a misspelt column": (lambda: moescope.load_task(FRAME, txt="text"), "unknown option 'txt' (did you mean 'text'?)"),
    "prompts are a number": (lambda: moescope.trace("moe-tiny", 3), "prompts: int: cannot be read"),
    "one checkpoint for several": (lambda: moescope.dynamics("dense-tiny", FRAME), "checkpoints: a series needs at least two"),
    # capture
    "sites of a name": (lambda: capture("dense-tiny", "resid").__enter__(), "model: str is no loaded model; give moescope."),
    "sites of a bare module": (lambda: activations(model().module, ["a"], "resid"), "model: LlamaModel is no loaded model"),
    "texts of a name": (lambda: encode("dense-tiny", ["a"]), "model: str is no loaded model"),
    "ids are a list": (lambda: run_capture([[1, 2]]), "ids: an object of class list was given"),
    "ids of one text": (lambda: run_capture(IDS[0]), "ids: int64 of shape (2,) was given"),
    "ids are floats": (lambda: run_capture(IDS.float()), "ids: float32 of shape (1, 2)"),
    "an id beyond the model's": (lambda: run_capture(IDS * 10**6), "ids: 1000000 is no token of dense-tiny"),
    "an id below 0": (lambda: run_capture(-IDS), "ids: -1 is no token"),
    "a mask of another shape": (lambda: run_capture(IDS, torch.ones(1, 3)), "mask: float32 of shape (1, 3)"),
    "a mask that is a text": (lambda: run_capture(IDS, "left"), "mask: an object of class str"),
    "one text for several": (lambda: activations(model(), "a text", "resid"), "texts: one string was given"),
    "no texts": (lambda: encode(model(), None), "texts: NoneType was given"),
    "texts and sites swapped": (lambda: activations(model(), "resid", ["a"]), "site 'a' is unknown"),
    "a batch that is a text": (lambda: activations(model(), ["a"], "resid", batch_tokens="x"), "batch_tokens: 'x' is not"),
    "tokens that are a text": (lambda: activations(model(), ["a"], "resid", max_tokens="x"), "max_tokens: 'x' is not"),
    "labels that are a text": (lambda: moments(model(), ["a b"], "resid", "x"), "labels: shape ()"),
    # ranking
    "scores are a list": (lambda: rank([1.0, 2.0]), "score: list was given"),
    "scores of two dimensions": (lambda: rank(X), "score: float64 of shape (40, 30)"),
    "scores are texts": (lambda: rank(np.array(["a", "b"])), "score: <U1 of shape (2,)"),
    "a score is NaN": (lambda: rank(np.array([1, np.nan])), "score: that of feature 1 is NaN"),
    "a mask of whole numbers": (lambda: rank(X[0], np.ones(30, int)), "give bool (30,)"),
    "half a feature": (lambda: top_k(X[0], 2.5), "k: 2.5 is not a whole number"),
    "k and scores swapped": (lambda: top_k(2, X[0]), "score: int was given"),
    "more than there are": (lambda: top_k(X[0], 31), "k=31 features out of 30"),
    "activations are a list": (lambda: fold_class_sums(X.tolist(), Y, 0 * Y), "must be a numpy array"),
    "labels and activations swapped": (lambda: fold_class_sums(Y, X, 0 * Y), "must be a numpy array"),
    "fewer labels than rows": (lambda: permutation_max(X, Y[:4]), "labels have shape (4,) for 40 rows"),
    "activations are one row": (lambda: permutation_max(X[0], Y), "must be a numpy array"),
    "no permutation": (lambda: permutation_max(X, Y, n_permutations=0), "n_permutations: must be at least 1, got 0"),
    "rows for moments": (lambda: divergence(X, Y, X), "mean: shapes do not fit"),
    "a seed for a generator": (lambda: random_sets(0, 30, 2, 3), "rng: int is no generator"),
    # traces
    "ids of experts are lists": (lambda: moescope.signatures(trace(ids=[[[0, 1]] * 2] * 3)), "ids must be a numpy array"),
    "ids of experts are floats": (lambda: moescope.signatures(trace(ids=np.zeros((3, 2, 2)))), "ids must be unsigned integers"),
    "ids without layers": (lambda: moescope.residency(trace(ids=np.zeros((3, 2), np.uint8))), "ids must be unsigned integers"),
    "an expert that is not there": (
        lambda: moescope.signatures(trace(ids=np.full((3, 2, 2), 9, np.uint8))), "row 0, layer 0: expert id 9 is out of range"
    ),
    "one number of experts": (lambda: moescope.agreement(trace(n_experts=4), trace()), "n_experts must be a tuple"),
    "an array for a trace": (lambda: moescope.signatures(X), "model: an object of class ndarray is no model"),
    "an array for a trace alone": (lambda: signatures_of(X), "trace: ndarray is no RoutingTrace"),
    "a number for a trace": (lambda: moescope.residency(3), "int was given where a folder or file is named"),
    "no such quantity": (lambda: signatures_of(trace(), quantity="freq"), "quantity: 'freq' is none of frequency, weight"),
    "no such part": (lambda: signatures_of(trace(), part="answers"), "part: 'answers' is none of"),
    "a result that is a number": (lambda: moescope.load(3), "folder: int is no folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_line_that_names_what_is_wrong(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, words = WRONG[case]
    body = model().body
    ran: list[object] = []
    monkeypatch.setattr(body, "forward", lambda *args, **named: ran.append(args))
    with pytest.raises((moescope.InputError, TypeError)) as raised:
        call()
    line = str(raised.value)
    assert words in line
    assert "\n" not in line
    assert not ran, "the model was run before its input was checked"
    if raised.type is TypeError:  # Python's own, of the call itself: no deeper than the function that was called
        assert "argument" in line
        assert len(raised.traceback) <= 5


def test_numbers_of_numpy_and_arrays_that_fit_are_taken() -> None:
    assert rank(np.array([1, 3, 2])).tolist() == [1, 2, 0]
    assert top_k(X[0], np.int64(2)).tolist() == np.argsort(-X[0])[:2].tolist()
    assert run_capture(IDS.int(), IDS.bool())
    assert trace().validate().top_k == 2
