"""Effects of steering: found where one was planted, not found where none was, against sets that really match."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from moescope.errors import InputError
from moescope.intervene import Expert, ExpertEdits, steer_experts
from moescope.models import LoadedModel, from_model
from moescope.routing import trace_prompts
from moescope.routing.trace import RoutingTrace, TracedSequence
from moescope.studies.steer.choose import category_usage, route_like, top_experts
from moescope.studies.steer.claims import steering_claims
from moescope.studies.steer.effects import prepare_texts
from moescope.studies.steer.experts_match import matched_edits, usage_ratio
from moescope.studies.steer.settings import SteerSettings
from moescope.studies.steer.steering import Steering
from moescope.studies.steer.study import steer
from moescope.study.result import StudyResult
from moescope.study.run import Run
from moescope.study.verdicts import verdicts
from moescope.tasks import Prompt
from moescope.tasks.passages import Passage, load_passages
from moescope.types import Claim
from tests.architectures import BOS, COMMON, tiny_model, tiny_tokenizer

N_EXPERTS = 96
SETTINGS = SteerSettings(ban=((0, 0),), target="capitals", n_random=95, text_tokens=400, length=24, new_tokens=0)


def passages(seed: int = 0) -> list[Passage]:
    """Random letters, capitals in one category and small ones in the other."""
    rng = np.random.default_rng(seed)
    alphabets = {"capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "small": "abcdefghijklmnopqrstuvwxyz", "digits": "0123456789"}
    return [
        Passage("".join(rng.choice(list(letters), 24)), name, str(i)) for name, letters in alphabets.items() for i in range(12)
    ]


def planted(strength: float, *, layers: int = 1, also: str = "", gate: float = 3.0) -> LoadedModel:
    """Capitals go to expert 0 of the first ``layers``, which alone makes capitals likelier to follow; strength 0 leaves it
    idle. The letters ``also`` go there too, all with a logit that grows with ``gate``."""
    config = transformers.OlmoeConfig(
        **(
            COMMON
            | {"num_hidden_layers": max(2, layers), "intermediate_size": 16, "num_experts": N_EXPERTS, "num_experts_per_tok": 2}
        )
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05) if parameter.dim() > 1 else parameter.fill_(1.0)
        capitals = [tiny_tokenizer().convert_tokens_to_ids(c) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, :2] = 0
        embedding[[*capitals, *(tiny_tokenizer().convert_tokens_to_ids(c) for c in also)], 0] = 1.0
        head[:, :2] = 0
        head[capitals, 1] = 2.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.experts.down_proj.mul_(0.2)
        for layer in model.model.layers[:layers]:
            block = layer.mlp
            block.gate.weight[0] = 0
            block.gate.weight[0, 0] = gate
            block.experts.gate_up_proj[0] = 0
            block.experts.gate_up_proj[0, :, 0] = 1.0
            block.experts.down_proj[0] = 0
            block.experts.down_proj[0, 1] = strength
    return from_model(model.eval(), tiny_tokenizer(), name="planted")


@cache
def studied(strength: float) -> StudyResult:
    return steer(planted(strength), passages(), replace(SETTINGS, new_tokens=3), prompts=[Prompt("A", "ABC")])


BAN = ExpertEdits(ban=frozenset({Expert(0, 0)}))


def usage_of(result: StudyResult) -> dict[str, float]:
    """Usage of the one edited expert by category."""
    return dict(result.table("experts").iloc[0].filter(like="usage_"))


def test_the_planted_expert_is_found_and_its_loss_is_felt_there_alone() -> None:
    result = studied(0.2)
    assert usage_of(result)["usage_capitals"] > 0.9
    assert usage_of(result)["usage_small"] < 0.1
    frame = result.table("effects")
    row = frame.query("match == 'overall' and category == 'capitals'").iloc[0]
    assert row["effect"] > 0.1
    assert row["excess_low"] > 0.1
    assert row["p_harm"] == pytest.approx(1 / 96)  # 95 other sets, none as harmful
    # no other expert is used nearly as much: several together are
    assert frame["usage_ratio"].between(0.9, 1.1).all()
    assert "not run" not in result.claims[0].words
    overall = frame.query("match == 'overall'").set_index("category")
    assert (overall.loc[["small", "digits"], "effect"].abs() < 0.02).all()
    selectivity = frame.query("match == 'overall' and category == 'selectivity'").iloc[0]
    assert selectivity["excess_low"] > 0.1
    (rows,) = result.rows
    assert set(rows) == {"name", "judge"}  # nothing was chosen
    assert [c["control"] for c in result.meta["controls"]] == [
        f"ban 0:0: random sets matched on {match}" for match in ("overall", "target")
    ]
    assert "share 0.0% of" in result.meta["controls"][0]["evidence"]


def test_an_expert_that_carries_nothing_shows_nothing() -> None:
    result = studied(0.0)
    assert usage_of(result)["usage_capitals"] > 0.9  # specialised in its use, and of no use
    row = result.table("effects").query("match == 'overall' and category == 'capitals'").iloc[0]
    assert abs(row["effect"]) < 0.02
    assert abs(row["excess"]) < 0.02  # and what little there is does not count, however sure it is
    assert result.claims[0].outcome == "contradicted"


@pytest.mark.parametrize(("strength", "outcome"), [(0.2, "holds"), (0.0, "contradicted")])
def test_the_study_says_so_in_its_claims(strength: float, outcome: str) -> None:
    result = studied(strength)
    harm, selective, *others = result.claims
    assert harm.statement == "ban 0:0: hurts capitals, beyond matched random ones"
    assert selective.statement == "ban 0:0: hurts capitals more than other text, beyond matched random ones"
    for claim in (harm, selective):
        assert (claim.id, claim.outcome) == ("S8", outcome)
        assert claim.interval is not None
        assert claim.control is not None
        assert claim.family == "steering: ban 0:0"
    if strength:
        assert harm.explanation == selective.explanation == "none found"  # beyond those matched on use in the category too
        assert harm.p_adjusted == pytest.approx(4 / 96)  # of two claims, both tails, the rarest of 95 draws
    assert {c.outcome for c in others} == {"descriptive"}
    sample = result.table("samples").iloc[0]
    assert sample["prompt"] == "ABC"
    assert (sample["before"] != sample["after"]) == (strength > 0)


def test_a_ban_that_hurts_as_random_ones_do_is_not_called_more() -> None:
    """Expert 1 is any other expert: whatever its ban does, that of its like does too."""
    result = steer(planted(0.2), passages(), replace(SETTINGS, ban=((0, 1),)))
    assert [c.outcome for c in result.claims[:2]] in (["contradicted"] * 2, ["contradicted", "inconclusive"])


def test_too_few_random_sets_are_refused_before_the_model_is_loaded() -> None:
    for n, least, settings in ((5, 79, SETTINGS), (100, 159, replace(SETTINGS, target=None))):
        with pytest.raises(InputError, match=f"n_random: {n} draws cannot show anything .* at least {least}"):
            steer("no-such-model", passages(), replace(settings, n_random=n))


def test_what_chooses_experts_does_not_judge_them() -> None:
    texts = passages()
    prompts = [Prompt(str(i), "x" + p.text, p.category) for i, p in enumerate(texts) if i % 3 == 0]
    settings = SteerSettings(ban_top=("capitals=1",), n_random=79, text_tokens=200, length=24, new_tokens=0)
    (rows,) = steer(planted(0.2), texts, settings, prompts=prompts).rows
    assert rows["select"]["rows"] == len(prompts)
    assert rows["judge"]["rows"] > 0
    with pytest.raises(InputError, match="prompts: prompt 'new' chooses experts and is also among the texts"):
        steer(planted(0.2), texts, settings, prompts=[*prompts, Prompt("new", texts[5].text, "capitals")])


def test_the_work_is_told_before_it_is_begun_and_fits_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward tokens and minutes come before the first random set; of a model whose tokens cost too much fewer are read."""
    told: list[str] = []
    run = Run(progress=lambda stage, done, total: told.append(stage))
    settings = replace(SETTINGS, text_tokens=None)

    def studied() -> StudyResult:
        told.clear()
        return steer(planted(0.2), passages(), settings, run=run)

    whole = studied()
    texts = sum(found["tokens"] for found in whole.meta["texts"].values())
    forward = texts * (1 + 2 * 95)  # the steering itself, and random experts matched overall and on the target
    assert whole.meta["forward_tokens"] == {"steered": forward}
    assert told[0].startswith(f"{forward:,} forward tokens, at most ")
    assert any("against random ones" in stage for stage in told[1:])
    assert not any("text_tokens" in note for note in whole.meta["notes"])
    monkeypatch.setattr("moescope.studies.steer.study._BUDGET", 1.0)
    less = studied()
    assert less.meta["forward_tokens"]["steered"] < forward
    assert any("256 tokens of each category's text judge instead of 1536" in note for note in less.meta["notes"])


def test_hurting_less_than_random_experts_is_not_called_help() -> None:
    row = {
        **{"steering": "s", "match": "overall", "category": "a", "target": True, "baseline": 3.0, "effect": 0.03},
        **{"low": -0.01, "high": 0.06, "random_mean": 0.1, "random_low": 0.08, "random_high": 0.12, "excess": -0.07},
        **{"excess_low": -0.11, "excess_high": -0.03, "p_harm": 1.0, "p_help": 0.01, "n_random": 100, "usage_ratio": 1.0},
    }

    def said(**more: float) -> Claim:
        cases = steering_claims(Steering("s", BAN, "a", "help"), pd.DataFrame([row | more]), 0.02, 0.05)
        return verdicts(cases)[0]

    assert said().outcome != "holds"
    assert "the model as it is" in said().words
    assert said(effect=-0.3, low=-0.4, high=-0.2, excess=-0.4, excess_low=-0.5, excess_high=-0.3).outcome == "holds"


def test_effects_are_those_of_the_steered_model_text_by_text() -> None:
    """Batched, padded and against clean losses: the same as each text by itself, written out."""
    model = planted(0.2)
    texts = prepare_texts(model, passages()[:24], 400, SETTINGS, Run())
    frame = steer(model, passages()[:24], SETTINGS).table("effects").query("match == 'overall'")
    losses = {"capitals": [], "small": []}
    for row, passage in enumerate(texts.passages):
        ids = torch.from_numpy(texts.encoded[row].astype(np.int64))[None]
        assert ids[0, 0] == BOS
        with torch.no_grad():
            clean = model.module(ids, labels=ids).loss.item()
            with steer_experts(model, BAN):
                losses[passage.category].append(model.module(ids, labels=ids).loss.item() - clean)
    found = frame.set_index("category")["effect"]
    for category, effects in losses.items():
        assert found[category] == pytest.approx(np.mean(effects), abs=1e-5)


def test_matched_sets_match_layer_and_usage() -> None:
    rng = np.random.default_rng(0)
    usage = {layer: rng.dirichlet(np.full(64, 0.5)) * 8 for layer in range(3)}
    common = [int(np.argsort(-u)[3]) for u in usage.values()]
    edits = ExpertEdits(ban=frozenset(Expert(layer, e) for layer, e in enumerate(common)), boost={Expert(1, 5): 2.0})
    sets = matched_edits(edits, usage, n_sets=50, seed=1)
    assert len({str(s) for s in sets}) == 50
    for one in sets:
        assert sorted(e.layer for e in one.ban) == [0, 1, 2]
        assert not set(one.experts) & set(edits.experts)
        assert list(one.boost.values()) == [2.0]
    assert 0.8 < usage_ratio(edits, sets, usage) < 1.25
    anywhere = [ExpertEdits(ban=frozenset(Expert(layer, int(rng.integers(64))) for layer in range(3))) for _ in range(50)]
    # what matching is for
    assert abs(np.log(usage_ratio(edits, anywhere, usage))) > 3 * abs(np.log(usage_ratio(edits, sets, usage)))


@pytest.mark.parametrize("number", [0, 40, 79])
def test_one_banned_expert_has_as_many_matches_as_the_default_asks_for(number: int) -> None:
    """Of five layers of sixteen: a rare, a middling and the most used expert."""
    rng = np.random.default_rng(0)
    usage = {layer: rng.dirichlet(np.full(16, 0.7)) * 2 for layer in range(5)}
    ranked = sorted(((u, layer, e) for layer, us in usage.items() for e, u in enumerate(us)))
    ban = ExpertEdits(ban=frozenset({Expert(*ranked[number][1:])}))
    sets = matched_edits(ban, usage, n_sets=SteerSettings().n_random)
    if number:
        assert len({str(s) for s in sets}) == 199
        assert usage_ratio(ban, sets, usage) == pytest.approx(1, abs=0.1)
    assert not any(set(s.experts) & set(ban.experts) for s in sets)
    boost = ExpertEdits(boost={Expert(*ranked[number][1:]): 1.0})
    near = matched_edits(boost, usage, n_sets=20)
    assert len({str(s) for s in near}) == 20
    if number == 40:
        assert 0.8 < usage_ratio(boost, near, usage) < 1.25


def test_the_most_used_expert_of_every_layer_stand_beside_more_of_the_others() -> None:
    rng = np.random.default_rng(0)
    usage = {layer: rng.dirichlet(np.full(16, 1.0)) * 2 for layer in range(5)}
    ban = ExpertEdits(ban=frozenset(Expert(layer, int(e)) for layer, u in usage.items() for e in np.argsort(-u)[:1]))
    sets = matched_edits(ban, usage, n_sets=SteerSettings().n_random)
    assert len({str(s) for s in sets}) == 199
    assert usage_ratio(ban, sets, usage) == pytest.approx(1, abs=0.1)
    for one in sets:
        assert max(sum(e.layer == layer for e in one.ban) for layer in usage) <= 8  # the layer must go on routing


def test_where_no_expert_is_used_as_much_that_control_is_named_as_not_run() -> None:
    row = studied(0.2).table("effects").query("match == 'overall' and category == 'capitals'")
    (case,) = steering_claims(Steering("ban 0:0", BAN, "capitals", "harm"), row.assign(usage_ratio=0.3), 0.02, 0.05)
    claim = verdicts([case])[0]
    assert "not run: random ones used as much over all text (those that there are: 0.30 times as much)" in claim.words
    assert "matched in usage" not in claim.words


def test_matched_sets_are_all_there_are_when_few_exist() -> None:
    usage = {0: np.full(6, 1 / 3)}
    sets = matched_edits(ExpertEdits(ban=frozenset({Expert(0, 2)})), usage, n_sets=100)
    assert sorted(next(iter(s.ban)).number for s in sets) == [0, 1, 3, 4, 5]
    with pytest.raises(InputError, match="no other set of experts"):
        matched_edits(ExpertEdits(boost={Expert(0, e): 1.0 for e in range(6)}), usage)
    with pytest.raises(InputError, match="nothing to match"):
        matched_edits(ExpertEdits(), usage)


def trace_of(counts: dict[str, list[list[int]]]) -> RoutingTrace:
    """Sequences by category, each a list of the experts of its tokens, one layer (number 4) of four experts, top-1."""
    sequences, ids, owner = [], [], []
    for category, members in counts.items():
        for chosen in members:
            owner += [len(sequences)] * len(chosen)
            sequences.append(TracedSequence(f"s{len(sequences)}", category))
            ids += chosen
    n = len(ids)
    return RoutingTrace(
        (4,),
        (4,),
        np.array(ids, dtype=np.uint8).reshape(n, 1, 1),
        None,
        np.array(owner, dtype=np.int32),
        np.arange(n, dtype=np.int32),
        np.zeros(n, dtype=bool),
        None,
        tuple(sequences),
    ).validate()


def test_top_experts_are_those_used_beyond_the_other_categories() -> None:
    trace = trace_of({"a": [[0, 0, 0, 0, 0, 0, 2, 2, 2, 3]], "b": [[0, 0, 0, 0, 0, 0, 0, 1, 1, 3]]})
    # expert 0 is a's most used, and used no less by b
    assert top_experts(trace, "a", 1) == (Expert(4, 2),)
    assert top_experts(trace, "b", 2) == (Expert(4, 1), Expert(4, 0))
    assert category_usage(trace)["a"][0].tolist() == [0.6, 0.0, 0.3, 0.1]
    with pytest.raises(InputError, match="category 'c' is not among the prompts'"):
        top_experts(trace, "c", 1)
    with pytest.raises(InputError, match="take 1 to 3"):
        top_experts(trace, "a", 4)


def test_routing_like_a_category_moves_routing_there() -> None:
    model = tiny_model("olmoe", head=True)
    prompts = [Text(p.text[:60], p.category, f"{p.category}{i}") for i, p in enumerate(load_passages()) if i % 9 == 0]
    trace = trace_prompts(model, prompts)
    usage = category_usage(trace)
    edits = route_like(trace, "code", 1.0)
    assert len(edits.boost) == 18
    stories = [p for p in prompts if p.category == "story"]
    with steer_experts(model, edits):
        steered = trace_prompts(model, stories)
    moved = steered.counts().sum(0) / len(steered)
    before = usage["story"]
    assert np.abs(moved - usage["code"]).sum() < np.abs(before - usage["code"]).sum()


class Text:
    def __init__(self, text: str, category: str, id: str) -> None:
        self.text, self.category, self.id, self.group = text, category, id, None


def test_a_circuit_of_another_model_is_refused(tmp_path: Path) -> None:
    """Its neurons exist in this one too, and do something else."""
    model = tiny_model("llama", head=True)
    found = {"sentiment": {"neurons": [{"site": "resid", "layer": 1, "neuron": 3}]}}
    stored = tmp_path / "circuits.json"
    stored.write_text(json.dumps({"meta": {"model": "another", "fingerprint": "0"}, "circuits": found}))
    with pytest.raises(InputError, match=rf"is a circuit of another, not of {model.name}"):
        steer(model, passages(), SteerSettings(ablate=str(stored)))


def test_neurons_are_ablated_beside_random_neurons(tmp_path: Path) -> None:
    circuit = tmp_path / "circuit.json"
    circuit.write_text(json.dumps({"neurons": [{"site": "mlp_act", "layer": 2, "neuron": i} for i in range(3)]}))
    how = {"target": "small", "n_random": 79, "text_tokens": 200, "length": 20, "new_tokens": 0}
    result = steer(tiny_model("llama", head=True), passages(), SteerSettings(ablate=str(circuit), mode="zero", **how))
    effects = result.table("effects")
    assert set(effects["category"]) == {"capitals", "small", "digits", "wikitext", "selectivity"}
    assert effects["effect"].abs().max() > 0
    assert result.table("neurons")["neuron"].tolist() == [f"mlp_act:2/{i}" for i in range(3)]


def test_notation() -> None:
    assert SteerSettings(ban=("5:17", " 3:2", "0:0")).experts("ban") == {(5, 17), (3, 2), (0, 0)}
    assert SteerSettings(force=(Expert(5, 17), (3, 2))).force == ("5:17", "3:2")  # type: ignore[arg-type]
    assert SteerSettings(boost=("5:17=+2.0", "1:2=-inf")).values("boost") == {(5, 17): 2.0, (1, 2): float("-inf")}
    assert SteerSettings(like=("a", "b=0.5")).amounts("like", 1.0) == [("a", 1.0), ("b", 0.5)]
    for text, message in (("5", "'5' is not LAYER:EXPERT"), ("a:b", "'a:b' is not"), ("-1:3", "'-1:3' is not")):
        with pytest.raises(InputError, match=f"ban: {message}"):
            SteerSettings(ban=(text,))
    for texts, message in ((["5:1"], "is not LAYER:EXPERT=NUMBER"), (["5:1=x"], "is not LAYER"), (["5:1=1", "5:1=2"], "twice")):
        with pytest.raises(InputError, match=f"boost: .*{message}"):
            SteerSettings(boost=tuple(texts))
    with pytest.raises(InputError, match="ban: '5:17' is not a list"):
        SteerSettings(ban="5:17")  # type: ignore[arg-type]


def test_shipped_passages_cover_the_prompt_categories() -> None:
    found = load_passages()
    assert {p.category for p in found} == {"code", "math", "story", "factual"}
    for category in ("code", "math", "story", "factual"):
        assert len({p.group for p in found if p.category == category}) >= 10
    with pytest.raises(InputError, match="category 'poem' has no passages"):
        load_passages(categories=["poem"])
