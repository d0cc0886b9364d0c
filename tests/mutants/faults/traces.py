"""Traces that engines recorded: how they are read, and how two are compared."""

from __future__ import annotations

from tests.mutants.fault import faults

_RESPONSES = "routing/engines/responses.py"
_SENSE = "routing/sense.py"
ENGINES = faults(
    "engines",
    "../engines",
    (
        "prompt-twice",
        "prompt rows",
        "each answer to a prompt counts the prompt's tokens anew",
        _RESPONSES,
        "later = index > 0 and prompt is not None",
        "later = index < 0 and prompt is not None",
        ("test_several_answers_tell_their_prompt_without_usage",),
    ),
    (
        "prompt-lost",
        "prompt rows",
        "what a response says of its prompt is not read",
        _RESPONSES,
        "            ids = _joined(before, ids)",
        "            ids = _joined(before[:0], ids)",
        ("test_every_form_of_an_answer",),
    ),
    (
        "twice-in-a-token",
        "sense",
        "an expert may stand twice in a token",
        _SENSE,
        "(slots[a] == slots[b]) & (slots[a] != trace.empty)",
        "(slots[a] == slots[b]) & (slots[a] == trace.empty)",
        ("test_slots_never_written_are_refused",),
    ),
    (
        "unrecorded-is-expert",
        "sense",
        "a mark of what was not recorded is an expert",
        _SENSE,
        "    none = ids < 0",
        "    none = ids < -1",
        ("test_tokens_marked_as_not_recorded_are_left_out",),
    ),
    (
        "physical-is-logical",
        "loads",
        "replicas of an expert are counted as experts",
        "routing/engines/recorder.py",
        "np.add.at(logical[:, layer].T, table[layer], counts[:, layer].T)",
        "np.add.at(logical[:, layer].T, np.arange(len(table[layer])), counts[:, layer].T)",
        ("test_counts_of_the_recorder",),
    ),
)
_MATCHED = "studies/agreement/matched.py"
AGREEMENT = faults(
    "agreement",
    "agreement",
    (
        "popularity-is-uniform",
        "popularity",
        "chance is that of a uniform router",
        "routing/overlap.py",
        "usage = [np.bincount(ids[one], minlength=n_experts) / len(ids) for ids, one in ((left, used), (right, other))]",
        "usage = [np.full(n_experts, one.sum() / len(one) / n_experts) for one in (used, other)]",
        ("test_two_that_have_nothing_in_common_but_popularity",),
    ),
    (
        "goes-on-after-a-difference",
        "matching",
        "tokens that follow another text are compared",
        _MATCHED,
        "if len(other):",
        "if len(other) < 0:",
        ("test_a_text_that_goes_another_way_is_compared_up_to_there",),
    ),
    (
        "yardstick-is-b",
        "yardstick",
        "the yardstick is B itself",
        "studies/agreement/claims.py",
        "there = found.shared[ours].mean(1), noise.shared[theirs].mean(1)",
        "there = found.shared[ours].mean(1), found.shared[ours].mean(1)",
        ("test_beside_a_yardstick",),
    ),
    (
        "last-for-first",
        "first difference",
        "the last layer that differs is taken for the first",
        _MATCHED,
        "self.same.shape[1], (~self.same).argmax(1))",
        "self.same.shape[1], self.same.shape[1] - 1 - (~self.same[:, ::-1]).argmax(1))",
        ("test_where_they_part",),
    ),
)
_HELD_OUT, _CARDS = "studies/atlas/held_out.py", "routing/cards.py"
ATLAS = faults(
    "atlas",
    "atlas",
    (
        "judges-what-chose",
        "halves",
        "tokens and categories are judged on the half that chose them",
        _HELD_OUT,
        "    judging = np.flatnonzero(~first)",
        "    judging = np.flatnonzero(first)",
        ("test_a_uniform_router_prefers_nothing",),
    ),
    (
        "labels-not-confirmed",
        "halves",
        "labels are confirmed on the half that chose them",
        _HELD_OUT,
        "_confirmed(b.hits[rows, e], b.n[rows], b.rate[e], a.tokens[rows], top)",
        "_confirmed(a.hits[rows, e], a.n[rows], a.rate[e], a.tokens[rows], top)",
        ("test_tokens_that_always_reach_an_expert_are_its_label",),
    ),
    (
        "identity-is-the-rate",
        "token identity",
        "the control by token identity knows no token",
        _HELD_OUT,
        "expected = (a.hits + a.rate) / (a.n + 1)[:, None]",
        "expected = np.tile(a.rate, (len(a.n), 1))",
        ("test_routing_by_token_is_told_from_routing_by_category",),
    ),
    (
        "twin-is-itself",
        "twin",
        "all tokens stand beside a twin's prompts",
        "studies/atlas/claims.py",
        "[(bits(twin[0].tokens) - bits(twin[1].tokens), TWIN)]",
        "[(bits(twin[0].tokens), TWIN)]",
        ("test_a_twin_that_routes_alike_explains_it",),
    ),
    (
        "blocks-straddle",
        "halves",
        "prompts of one template stand on both sides",
        "studies/atlas/study.py",
        "    return np.isin(cells.groups, chosen)",
        "    return np.arange(len(cells.groups)) % 2 == 0",
        ("test_every_token_is_in_no_or_one_half",),
    ),
    (
        "neighbours-unmarked",
        "contexts",
        "tokens of another expert are marked",
        _CARDS,
        "        chosen[tokens] = False\n",
        "",
        ("test_cards_of_many_at_once_are_those_of_each_alone",),
    ),
)
FAULTS = [*ENGINES, *AGREEMENT, *ATLAS]
