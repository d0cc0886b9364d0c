"""Reading that several processes share."""

from __future__ import annotations

from tests.mutants.fault import faults

_SPREAD = "capture/spread.py"

FAULTS = faults(
    "cluster",
    "cluster",
    (
        "shard-forgotten",
        "shards",
        "the last shard of every process is nobody's",
        "cluster/share.py",
        "    return [sorted(numbers) for numbers in shared]",
        "    return [sorted(numbers)[:-1] for numbers in shared]",
        ("test_every_shard_is_in_one_part_and_none_costs_much_more_than_another",),
    ),
    (
        "shard-twice",
        "shards",
        "a shard is read by two processes",
        "cluster/share.py",
        "        shared[part].append(number)",
        "        shared[part].append(number), shared[part - 1].append(number)",
        ("test_every_shard_is_in_one_part_and_none_costs_much_more_than_another",),
    ),
    (
        "unnoticed",
        "shards",
        "a text that was read twice, or not at all, is not noticed",
        _SPREAD,
        "    if left.any():",
        "    if False:",
        ("test_a_shard_that_is_forgotten_or_read_twice_is_noticed",),
    ),
    (
        "merge-forgets",
        "merging",
        "of all shards' moments the last one's are kept",
        "capture/moments.py",
        "        state = state.merge(part)",
        "        state = part",
        ("test_moments_are_those_of_one_process",),
    ),
    (
        "merge-means",
        "merging",
        "the shards' means are averaged whatever their sizes",
        "capture/moments.py",
        "        share = np.divide(b.n, n, out=np.zeros(n.shape), where=n > 0)[..., None, None]",
        "        share = np.divide(b.n > 0, 1.0 * (a.n > 0) + (b.n > 0), out=np.zeros(n.shape), where=n > 0)[..., None, None]",
        ("test_moments_of_any_shards_merge_to_the_same_in_any_order",),
    ),
    (
        "row-order",
        "rows",
        "a batch's vectors are put down in the order of the texts, not of the batch",
        "capture/activations.py",
        "            out[place][rows] = vectors",
        "            out[place][np.sort(rows)] = vectors",
        ("test_activations_are_those_of_one_process",),
    ),
    (
        "other-model",
        "model",
        "another process may read another model",
        "models/copies.py",
        "    if found.fingerprint != fingerprint:",
        "    if False:",
        ("test_another_model_in_another_process_is_refused",),
    ),
    (
        "tokens-of-one",
        "forward tokens",
        "what other processes read is not counted",
        _SPREAD,
        "            count(tokens)",
        "            count(0.0)",
        ("test_forward_tokens_of_all_processes_are_counted",),
    ),
    (
        "edited-elsewhere",
        "interventions",
        "other processes read the model as if nothing held it",
        _SPREAD,
        "    if model.spread is None or _held(model):",
        "    if model.spread is None:",
        ("test_a_model_that_is_intervened_on_is_read_here",),
    ),
)
