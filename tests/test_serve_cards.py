"""Cards of experts and neurons: made at the start from shipped prompts or of an atlas, true of the model, one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient

from moescope.capture import capture
from moescope.capture.encode import encode
from moescope.errors import InputError
from moescope.models import LoadedModel, load
from moescope.server import Served, gather
from moescope.server.app import create_app
from moescope.server.cards import example_prompts
from moescope.study.result import StudyResult
from tests.planted_llama import planted_llama
from tests.served_studies import save_circuits


@pytest.fixture(scope="module")
def moe() -> LoadedModel:
    return load("moe-tiny", head=True)


@pytest.fixture(scope="module")
def client(moe: LoadedModel) -> Iterator[TestClient]:
    with TestClient(create_app(gather(moe, cards=True)), "http://127.0.0.1") as made:
        yield made


def test_every_expert_has_a_card_that_is_true_of_it(client: TestClient, moe: LoadedModel) -> None:
    from moescope.routing.capture import trace_prompts

    info = client.get("/v1/info").json()
    assert info["cards"] == sum(info["experts"]["counts"]) == 80
    trace = trace_prompts(moe, example_prompts())
    for layer, expert in ((0, 3), (4, 15)):
        card = client.get(f"/v1/card?at={layer}:{expert}").json()
        chosen = (trace.ids[:, trace.layers.index(layer)] == expert).any(1)
        assert card["says"] == f"{100 * chosen.mean():.1f} % of tokens."
        assert f"{len(trace):,} tokens of 80 shipped prompts" in card["beneath"]
        assert card["label"] == ""  # nothing else has confirmed one
        for _, pieces in card["contexts"]:
            text = "".join(piece for piece, _ in pieces)
            assert any(marked for _, marked in pieces)
            assert any(text.replace("<|bos|>", "").strip() in prompt.text for prompt in example_prompts())


@pytest.mark.parametrize(
    ("at", "status"), [("0:16", 404), ("9:0", 404), ("<b>", 404), ("a" * 10_000, 404), ("", 404), (None, 422)]
)
def test_what_has_no_card_is_refused_in_one_line(client: TestClient, at: str | None, status: int) -> None:
    answer = client.get("/v1/card", params={} if at is None else {"at": at})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert len(answer.json()["error"]) < 160
    assert "\n" not in answer.json()["error"]


def test_neurons_cards_show_where_they_fire(tmp_path: Path) -> None:
    served = gather(planted_llama(), circuits=save_circuits(tmp_path), cards=True)
    trace = served.circuits[0]
    assert set(served.cards) == {str(neuron) for neuron in trace.neurons}
    neuron, card = trace.neurons[0], served.cards[str(trace.neurons[0])]
    assert card["says"] == f"Number 1 of {len(trace.neurons)} in the circuit of planted."
    assert card["classes"] == {name: round(float(values[0]), 2) for name, values in trace.classes.items()}
    largest = []
    with capture(served.model, [neuron.site]) as session:
        for ids in encode(served.model, [p.text for p in example_prompts()]):
            x = session.run(torch.from_numpy(ids.astype(np.int64))[None])[neuron.site][0, :, neuron.index].numpy()
            assert trace.mean is not None
            assert trace.sd is not None
            largest.append(np.abs((x - trace.mean[0]) / trace.sd[0]).max())
    shown = [abs(float(name.split()[0])) for name, _ in card["contexts"]]
    np.testing.assert_allclose(shown, np.sort(largest)[::-1][: len(shown)], atol=0.051)


def test_an_atlas_gives_the_experts_their_labels(moe: LoadedModel, tmp_path: Path) -> None:
    experts = pd.DataFrame({
        "layer": [1], "expert": [5], "share": [0.25], "label": ["<i>of</i>"], "confirmed": [1], "token_lift": [3.0],
        "category": ["code"], "category_lift": [1.5], "identity_lift": [1.4],
    })  # fmt: skip
    contexts = pd.DataFrame({"layer": [1], "expert": [5], "weight": [0.9], "category": ["code"], "text": ["a ⟦def⟧ b"]})
    meta = {"model": moe.name, "fingerprint": moe.fingerprint, "prompts": 80}
    from moescope.server.cards import cards_of_atlas

    made = StudyResult("atlas", meta, tables={"experts": experts, "expert_contexts": contexts})
    card = cards_of_atlas(moe, made, "folder")["1:5"]
    assert card["label"] == "<i>of</i>"
    assert card["says"].startswith("25.0 % of tokens; its tokens 3.00× on other prompts; code 1.50× on other prompts")
    assert card["contexts"] == [("code", [("a ", False), ("def", True), (" b", False)])]
    with pytest.raises(InputError, match=r"atlas: folder was made for moe-tiny .*, not for planted-llama"):
        cards_of_atlas(planted_llama(), made, "folder")
    with pytest.raises(InputError, match="atlas: folder holds no atlas"):
        cards_of_atlas(moe, StudyResult("exit", meta), "folder")


class _Parts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)


def test_the_page_loads_its_own_files_alone_and_holds_no_script(served_page: tuple[TestClient, str]) -> None:
    client, page = served_page
    parser = _Parts()
    parser.feed(page)
    assert parser.inline == []
    files = [a for a in parser.addresses if not a.startswith("#") and a != "data:,"]
    scripts = {}
    while files:
        name = files.pop()
        answer = client.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == ("text/css" if name.endswith(".css") else "text/javascript")
        assert not re.search(
            r"https?://|@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", answer.text
        )
        scripts[name] = answer.text
        files += [f"page/{found}" for found in re.findall(r'from "\./([\w.]+)"', answer.text) if f"page/{found}" not in scripts]
    assert len(scripts) == len(list((Path(__file__).parents[1] / "src/moescope/server/page").glob("*.[jc]s*")))
    used = {name for text in scripts.values() for name in re.findall(r'\$\("([\w-]+)"\)', text)}
    made = {name for text in scripts.values() for name in re.findall(r'id: [`"]([\w-]+)', text)}
    assert used <= {*parser.ids, *made, "part-0"}
    assert len(parser.ids) == len(set(parser.ids))
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy


@pytest.fixture(scope="module")
def served_page() -> Iterator[tuple[TestClient, str]]:
    with TestClient(create_app(Served(planted_llama(), {}), token="correct-horse-battery"), "http://127.0.0.1") as client:
        page = client.get("/")  # which needs no token, nor do its files
        assert page.headers["content-type"].startswith("text/html")
        yield client, page.text
