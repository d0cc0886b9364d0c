"""Experts banned and neurons ablated while a text is written: as the library does it, for no other text, or refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.intervene import Expert, ExpertEdits, intervene, steer_experts
from moescope.models import LoadedModel, load
from moescope.server import Limits, Served, gather
from moescope.server.app import create_app
from moescope.server.edits import Edits, edits_of
from moescope.server.wire import EditBody
from moescope.server.writer import Sampling, Writer
from moescope.types import Neuron
from tests.planted_llama import CARRIER, COORDINATE, planted_llama, planted_task
from tests.served_studies import save_circuits, wandering

CARRYING = f"{CARRIER}/{COORDINATE}"
PROMPT, NEW = "The film was a joy to watch and", 8


@pytest.fixture(scope="module")
def moe() -> LoadedModel:
    return load("moe-tiny", head=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("studies")
    model = planted_llama()
    wandering(model).write(folder / "exit" / "wandering")
    return gather(model, exits=[folder / "exit"], circuits=save_circuits(folder))


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[TestClient]:
    with TestClient(create_app(served, Limits(edits=3)), "http://127.0.0.1") as made:
        yield made


def written(served: Served, prompt: str, new: int = NEW, *edits: dict[str, Any]) -> list[dict[str, Any]]:
    """All tokens, those of the prompt among them."""
    asked = edits_of(served.model, [EditBody(**edit) for edit in edits], served.circuits)
    writer, tokens = Writer(served, prompt, Sampling(new_tokens=new), asked), []
    while writer.over is None:
        step = writer.step()
        assert step is not None
        tokens += step["tokens"]
    return tokens


def generated(model: LoadedModel, prompt: str, new: int, applied: AbstractContextManager[Any]) -> list[int]:
    """By transformers' own loop."""
    ids = torch.from_numpy(encode(model, [prompt])[0].astype(np.int64))[None]
    with applied, torch.no_grad():
        found = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return found[0].tolist()


def heaviest(tokens: list[dict[str, Any]], layer: int) -> int:
    """The expert of ``layer`` that is most often the first."""
    return int(np.bincount([token["experts"]["ids"][layer][0] for token in tokens]).argmax())


@pytest.mark.parametrize(
    ("does", "by"), [("ban", None), ("force", None), ("boost", -6.0), ("boost", 9.0), ("scale", 0.0), ("ablate", None)]
)
def test_experts_are_edited_as_the_library_does_it(moe: LoadedModel, does: str, by: float | None) -> None:
    served = gather(moe)
    free = written(served, PROMPT)
    experts = [Expert(layer, heaviest(free, layer)) for layer in (0, 1, 2)]
    if does == "force" or by == 9.0:  # what is forced has been the rarest
        seen = [np.bincount([e for token in free for e in token["experts"]["ids"][layer]], minlength=16) for layer in (0, 1, 2)]
        experts = [Expert(layer, int(seen[layer].argmin())) for layer in (0, 1, 2)]
    kinds: dict[str, Any] = {
        "ban": {"ban": frozenset(experts)}, "force": {"force": frozenset(experts)},
        "boost": {"boost": dict.fromkeys(experts, by)}, "scale": {"scale": dict.fromkeys(experts, 0.0)},
    }  # fmt: skip
    library = ExpertEdits(**kinds["scale" if does == "ablate" else does])
    edits = [{"at": str(e), "do": does} | ({} if by is None else {"by": by}) for e in experts]
    tokens = written(served, PROMPT, NEW, *edits)
    expected = generated(moe, PROMPT, NEW, steer_experts(moe, library))
    if tokens[-1]["id"] != expected[-1]:  # an end token is not shown
        expected = expected[:-1]
    assert [token["id"] for token in tokens] == expected
    if does != "force":  # the rarest have no weight to speak of
        assert [token["id"] for token in tokens] != [token["id"] for token in free]
    weights = [
        dict(zip(token["experts"]["ids"][e.layer], token["experts"]["weights"][e.layer], strict=True)).get(e.number)
        for token in tokens
        for e in experts
    ]
    if does == "ban":
        assert set(weights) == {None}
    elif does in ("scale", "ablate"):
        assert set(weights) <= {None, 0.0}
        assert 0.0 in weights
    elif does == "force":
        assert None not in weights
    # and nothing of it is left
    assert written(served, PROMPT) == free
    assert not any("forward" in vars(module) for module in moe.module.modules())


def test_the_planted_coordinate_decides_and_another_does_not() -> None:
    """Turned round, the model says no where it said yes; ablated it says neither; its neighbour does next to nothing."""
    served = gather(planted_llama())
    yes = served.model.tokenizer.convert_tokens_to_ids("yes")
    no = served.model.tokenizer.convert_tokens_to_ids("no")

    def first(*edits: dict[str, Any]) -> dict[str, Any]:
        return next(token for token in written(served, "w5 w30 w3", 1, *edits) if "p" in token)

    assert first()["id"] == yes
    turned = first({"at": CARRYING, "do": "scale", "by": -1})
    assert turned["id"] == no
    assert turned["likely"][0] == ["no", turned["p"]]
    with intervene(served.model, [Neuron(CARRIER, COORDINATE)], "zero"), torch.no_grad():
        logits = served.model.module(torch.from_numpy(encode(served.model, ["w5 w30 w3"])[0].astype(np.int64))[None]).logits
    expected = logits[0, -1].double().softmax(-1)
    ablated = first({"at": CARRYING, "do": "ablate"})
    assert ablated["id"] == int(expected.argmax())
    assert ablated["p"] == pytest.approx(float(expected.max()), abs=1e-4)
    assert dict(ablated["likely"]).get("yes", 0.0) < first()["p"] / 4
    other = first({"at": f"{CARRIER}/{COORDINATE + 1}", "do": "ablate"})
    assert other["id"] == yes
    assert other["p"] == pytest.approx(first()["p"], abs=0.1)


def test_a_circuit_neuron_is_set_to_its_studys_mean_and_read_as_that(served: Served) -> None:
    trace = served.circuits[0]
    neuron = trace.neurons[0]
    tokens = written(served, "w1 w2 w3", 3, {"at": str(neuron), "do": "ablate"})
    assert [token["circuits"]["planted"][0] for token in tokens] == [0.0] * len(tokens)  # a z-score
    assert trace.mean is not None
    assert edits_of(served.model, [EditBody(at=str(neuron), do="ablate")], served.circuits).ablated == {neuron: trace.mean[0]}


def test_who_writes_beside_it_is_not_touched(moe: LoadedModel) -> None:
    served = gather(moe)
    free = written(served, PROMPT)
    ban = Edits(ExpertEdits(ban=frozenset(Expert(layer, heaviest(free, layer)) for layer in (0, 1, 2))))
    plain, edited = Writer(served, PROMPT, Sampling(new_tokens=4)), Writer(served, PROMPT, Sampling(new_tokens=4), ban)
    steps = [(plain.step(), edited.step()) for _ in range(3)]
    ours = [token for step, _ in steps if step for token in step["tokens"]]
    assert ours == free[: len(ours)]
    assert all(
        e.number not in token["experts"]["ids"][e.layer]
        for _, s in steps
        if s
        for token in s["tokens"]
        for e in ban.experts.experts
    )


def test_a_long_prompt_with_edits_makes_no_room_within_a_pass(moe: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those let in between two modules would meet the edits."""
    ban = Edits(ExpertEdits(ban=frozenset({Expert(0, 0)})))
    for edits, long_step in ((None, True), (ban, False)):
        writer = Writer(gather(moe), "the film", Sampling(new_tokens=1), edits)
        writer._feed *= 200
        assert writer.long is long_step
    recurrent = planted_llama()
    monkeypatch.setattr(recurrent.module, "_is_stateful", True, raising=False)
    monkeypatch.setattr("moescope.server.writer.CHUNK", 16)
    with pytest.raises(InputError, match="prompt: 40 tokens, which this model reads at once, but with edits the limit is 16"):
        Writer(gather(recurrent), "w1 " * 40, Sampling(new_tokens=1), Edits(scaled={Neuron(CARRIER, 0): 2.0}))


HOSTILE: list[tuple[list[dict[str, Any]] | Any, int, str]] = [
    ([{"at": "2:5", "do": "ban"}], 400, "is dense"),
    ([{"at": "resid:99/1", "do": "ablate"}], 400, "site resid:99 does not exist"),
    ([{"at": "resid:1/99999", "do": "ablate"}], 400, "has coordinates 0 to 31"),
    ([{"at": "router:1/0", "do": "ablate"}], 400, "router scores are not neurons"),
    ([{"at": "resid:1/3", "do": "ban"}], 400, "edits, number 0: ban is for experts"),
    ([{"at": "resid:1/3", "do": "scale"}], 400, "edits, number 0: scale takes by, a factor"),
    ([{"at": "resid:1/3", "do": "ablate", "by": 2}], 400, "ablate takes no by; leave it out"),
    ([{"at": "resid:1/3", "do": "scale", "by": n} for n in (1, 2)], 400, "number 1: resid:1/3 is edited twice in one way"),
    ([{"at": "-1:5", "do": "ban"}], 400, "names neither an expert (2:5) nor a neuron"),
    ([{"at": "<script>alert(1)</script>", "do": "ban"}], 400, "names neither"),
    ([{"at": "resid:1/3\n", "do": "ablate"}], 400, "names neither"),
    ([{"at": "9" * 64, "do": "ban"}], 400, "names neither"),
    ([{"at": "2:5" * 40, "do": "ban"}], 422, "edits.0.at: String should have at most 64 characters"),
    ([{"at": "resid:1/3", "do": "scale", "by": float("nan")}], 422, "edits.0.by: Input should be"),
    ([{"at": "resid:1/3", "do": "scale", "by": float("inf")}], 422, "edits.0.by: Input should be less than or equal to 100"),
    ([{"at": "resid:1/3", "do": "scale", "by": 1e300}], 422, "edits.0.by: Input should be less than or equal to 100"),
    ([{"at": "resid:1/3", "do": "scale", "by": "2"}], 422, "edits.0.by: Input should be a valid number"),
    ([{"at": "resid:1/3", "do": "explode"}], 422, "edits.0.do: Input should be 'ban', 'force'"),
    ([{"at": "resid:1/3", "do": "ablate", "layer": 3}], 422, "edits.0.layer: Extra inputs are not permitted"),
    ([{"at": f"resid:1/{i}", "do": "ablate"} for i in range(4)], 413, "edits: 4 in one request, but the limit is 3"),
    ([{"at": "resid:1/3", "do": "ablate"}] * 1025, 422, "edits: List should have at most 1024 items"),
    ("resid:1/3", 422, "edits: Input should be a valid list"),
]  # fmt: skip


@pytest.mark.parametrize(("edits", "status", "says"), HOSTILE)
def test_hostile_edits_are_refused_in_one_line(client: TestClient, edits: Any, status: int, says: str) -> None:
    body = json.dumps({"prompt": "w1 w2", "edits": edits})
    answer = client.post("/v1/stream", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_million_edits_are_refused_at_once(client: TestClient) -> None:
    for one, status in (("0", 422), ('{"at":"resid:1/3","do":"ablate"}', 413)):  # the second is more than a body may be
        body = '{"prompt":"w1","edits":[' + ",".join([one] * 10**6) + "]}"
        answer = client.post("/v1/stream", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert len(answer.json()["error"]) < 200


def test_experts_that_are_not_there_are_refused(moe: LoadedModel) -> None:
    with TestClient(create_app(gather(moe)), "http://127.0.0.1") as client:
        for at, says in [
            ("2:16", "layer 2 has experts 0 to 15"),
            ("7:0", "layer 7 has no experts; those with are 0, 1, 2, 3, 4"),
        ]:
            answer = client.post("/v1/stream", json={"prompt": "a", "edits": [{"at": at, "do": "ban"}]})
            assert answer.status_code == 400
            assert says in answer.json()["error"]
        both = [{"at": "2:5", "do": "ban"}, {"at": "2:5", "do": "scale", "by": 2}]
        assert "banned and also" in client.post("/v1/stream", json={"prompt": "a", "edits": both}).json()["error"]
        none = [{"at": f"0:{e}", "do": "ban"} for e in range(16)]
        said = client.post("/v1/stream", json={"prompt": "a", "edits": none}).text
        assert said.startswith("event: error\n")
        assert "16 of 16 experts are banned, each token needs 4: ban fewer" in said
        assert client.post("/v1/stream", json={"prompt": "a", "chat": True}).json()["error"].startswith("chat: ")


def test_a_model_that_edits_break_is_not_said_to_need_another_precision() -> None:
    for edits, mend in ((Edits(scaled={Neuron(CARRIER, 0): 2.0}), "take some edits back"), (None, "serve it in fp32")):
        writer = Writer(gather(planted_llama()), "w1 w2", Sampling(new_tokens=2), edits)
        with pytest.raises(InputError, match=f"logits that are not numbers in torch.float32; {mend}"):
            writer._choose(torch.full((44,), torch.nan))


def test_rows_are_read_as_the_task_was(served: Served, tmp_path: Path) -> None:
    made = served.classifiers["wandering"].exit
    lines = "Say: {one}\nAnd: {two}"
    dataclasses.replace(made, template=lines).write(tmp_path / "wandering")
    with TestClient(
        create_app(gather(served.model, exits=[tmp_path / "wandering"]), Limits(texts=3)), "http://127.0.0.1"
    ) as client:
        known = client.get("/v1/info").json()["classifiers"][0]
        assert (known["template"], known["fields"], known["path"]) == (lines, ["one", "two"], "/v1/classify/wandering")
        rows = [{"one": "w1 w2", "two": "w3"}, {"one": "w{two} {0}", "two": "w9\nw8"}]
        answer = client.post(known["path"], json={"rows": rows}).json()
        probability, depth = made.run([lines.format(**row) for row in rows])
        assert [r["depth"] for r in answer["results"]] == depth.tolist()
        given = [list(r["probabilities"].values()) for r in answer["results"]]
        np.testing.assert_allclose(given, probability, atol=1e-6)
        assert "{0}" in lines.format(**rows[1])  # what is entered is no template
        for wrong, status, says in [
            ([], 400, "rows: none was given"),
            ([rows[0]] * 4, 413, "rows: 4 in one request, but the limit is 3"),
            ([{"one": "w1"}], 422, "rows, number 0: field 'two' is missing; its fields are one, two"),
            ([rows[0], {**rows[0], "three": "w"}], 422, "rows, number 1: field 'three' is not of the task"),
            ([{"one": "w1", "two": "  "}], 400, "rows, number 0: two is empty"),
            ([{"one": "w1", "two": "w" * 20_000}], 413, "characters, but the limit is 20000"),
            ([{"one": "w1", "two": 2}], 422, "rows.0.two: Input should be a valid string"),
            ({"one": "w1"}, 422, "rows: Input should be a valid list"),
        ]:
            refused = client.post(known["path"], json={"rows": wrong})
            assert refused.status_code == status, refused.text
            assert says in refused.json()["error"]
        schema = client.get("/openapi.json").json()
        asks = schema["paths"][known["path"]]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert asks["properties"]["rows"]["items"]["required"] == ["one", "two"]
    assert client.get("/v1/info").json()["classifiers"][0]["template"] == lines


@pytest.mark.parametrize("template", ["{0.__class__}", "{text!r:>99999999}", "{", "no field"])
def test_a_template_that_is_none_is_refused_when_it_is_read(served: Served, tmp_path: Path, template: str) -> None:
    dataclasses.replace(served.classifiers["wandering"].exit, template=template).write(tmp_path / "wandering")
    with pytest.raises(InputError, match=r"exit.safetensors: template '.*'"):
        gather(served.model, exits=[tmp_path / "wandering"])


def test_an_exit_study_keeps_its_tasks_template(tmp_path: Path) -> None:
    import moescope
    from moescope.runtime.exit.store import load_exit
    from moescope.tasks.build import RenderedTask

    plain = planted_task(rows=600)
    task = RenderedTask("planted", plain.examples, plain.classes, "made here", template="{words}")
    settings = moescope.ExitSettings(risk=0.05, k=3, timed_texts=4, margin=0.06)
    moescope.exit(planted_llama(), [task], settings).save(tmp_path, figures=False)
    assert load_exit(tmp_path / "exit" / "planted", planted_llama()).template == "{words}"
