"""Where a student's data come from, and the controls that lack one thing each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.dictionary import DictionarySettings, DictionaryTeacher, dictionary_pairs
from moescope.capture import ActivationStore, capture, encode
from moescope.errors import InputError
from moescope.studies.distill.baselines import baseline_fvu
from moescope.studies.distill.controls import control_pairs, moments
from moescope.studies.distill.data import (
    SPLITS,
    ArrayPairs,
    Block,
    batches,
    batches_per_epoch,
    count,
    scaling_of,
    split_units,
    whole,
)
from moescope.studies.distill.evaluate import fvu
from moescope.studies.distill.layer_data import model_pairs, pieces, read_texts, store_pairs, units_of
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.teacher import Teacher
from moescope.study.run import Run
from tests.architectures import tiny_model

TEXTS = [f"{'word ' * (i % 7 + 1)}number {i}" for i in range(60)]


def arrays(n: int = 3000, d: int = 6, seed: int = 0, buffer: int = 700) -> ArrayPairs:
    """Inputs of unequal variance and tails, outputs a nonlinear function of them."""
    draw = torch.Generator().manual_seed(seed)

    def block(size: int) -> Block:
        x = torch.randn(size, d, generator=draw) * torch.linspace(0.5, 3, d) + 1
        x[:, 0] = torch.empty(size).exponential_(generator=draw)  # excess kurtosis 6
        return Block(x, teach(x), torch.randint(0, 9, (size,), generator=draw))

    return ArrayPairs("arrays", {"train": block(n), "validation": block(n // 4), "test": block(n // 4)}, buffer=buffer)


def teach(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) @ torch.linspace(-1, 1, 18).reshape(6, 3)


def test_model_pairs_are_the_layers_own_inputs_and_outputs_without_first_token_and_padding() -> None:
    model = tiny_model("llama")
    teacher = Teacher(model, 2)
    pairs = model_pairs(teacher, TEXTS, run=Run(batch_tokens=100))
    encoded = encode(model, TEXTS)
    assert sum(count(pairs, split) for split in SPLITS) == int((encoded.lengths - 1).sum())
    # one text at a time, without any padding
    expected: list[np.ndarray] = []
    tokens: list[int] = []
    with capture(model, [teacher.site_in, teacher.site_out]) as session:
        for ids in encoded:
            seen = session.run(torch.from_numpy(ids).long()[None])
            expected.append(torch.cat([seen[teacher.site_in][0, 1:], seen[teacher.site_out][0, 1:]], dim=1).numpy())
            tokens += ids[1:].tolist()
    found = [whole(pairs, split) for split in SPLITS]
    ours = np.concatenate([torch.cat([b.x, b.y], dim=1).numpy() for b in found])
    theirs = np.concatenate(expected)
    assert sorted(torch.cat([b.tokens for b in found]).tolist()) == sorted(tokens)
    order = [np.lexsort(np.round(side[:, :6], 3).T) for side in (ours, theirs)]
    np.testing.assert_allclose(ours[order[0]], theirs[order[1]], atol=2e-5)


def test_streamed_equals_kept() -> None:
    """The same batches whether the data fit the memory or are read from the model again."""
    teacher = Teacher(tiny_model("llama"), 1)
    kept = model_pairs(teacher, TEXTS)
    streamed = model_pairs(teacher, TEXTS, DistillSettings(memory=1e-9))
    assert isinstance(kept, ArrayPairs)
    assert not isinstance(streamed, ArrayPairs)
    for split in SPLITS:
        torch.testing.assert_close(whole(streamed, split).x, whole(kept, split).x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole(streamed, split).y, whole(kept, split).y, atol=1e-5, rtol=1e-5)


def test_store_pairs_equal_model_pairs(tmp_path) -> None:
    model = tiny_model("llama")
    teacher = Teacher(model, 1)
    sites = [teacher.site_in, teacher.site_out]
    store = ActivationStore.collect(
        tmp_path / "s", model, TEXTS, sites, position="all", dtype="float32", skip_special=False, shard_texts=25
    )
    direct, stored = model_pairs(teacher, TEXTS), store_pairs(teacher, store)
    for split in SPLITS:
        torch.testing.assert_close(whole(stored, split).x, whole(direct, split).x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole(stored, split).y, whole(direct, split).y, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="activations of another model"):
        store_pairs(Teacher(tiny_model("llama", seed=1), 1), store)
    with pytest.raises(InputError, match="site mlp_in:2 is not in the store"):
        store_pairs(Teacher(model, 2), store)


def test_splits_balance_tokens_not_texts() -> None:
    lengths = np.array([1000] * 3 + [10] * 700)
    chosen = split_units(lengths, (0.8, 0.1, 0.1), seed=0)
    share = {split: lengths[units].sum() / lengths.sum() for split, units in chosen.items()}
    assert abs(share["train"] - 0.8) < 0.03
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(703))


def test_batches_are_full_shuffled_and_resume_in_the_middle() -> None:
    pairs = arrays()
    first = [b.x for b in batches(pairs, 100, seed=1, epoch=0)]
    assert len(first) == batches_per_epoch(pairs, 100, seed=1, epoch=0) == 30  # four buffers of 700, one of 200
    assert {len(x) for x in first} == {100}
    rest = [b.x for b in batches(pairs, 100, seed=1, epoch=0, skip=9)]
    assert all(torch.equal(a, b) for a, b in zip(first[9:], rest, strict=True))
    other = next(iter(batches(pairs, 100, seed=1, epoch=1))).x
    assert not torch.equal(first[0], other)
    seen = torch.cat(first)
    assert len(torch.unique(seen, dim=0)) == len(seen)
    assert batches_per_epoch(pairs, 4000, seed=1, epoch=0) == 0


def test_bad_values_are_named() -> None:
    blocks = dict(arrays().blocks)
    x = blocks["train"].x.clone()
    x[17, 2] = float("nan")
    with pytest.raises(InputError, match="train: input row 17 is not finite"):
        ArrayPairs("arrays", {**blocks, "train": Block(x, blocks["train"].y, None)})
    flat = Block(torch.ones(50, 6), torch.ones(50, 3), None)
    with pytest.raises(InputError, match="do not vary"):
        scaling_of(ArrayPairs("flat", dict.fromkeys(SPLITS, flat)))


def test_an_activation_that_is_not_finite_names_site_and_text() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.structure.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"site mlp_out:1, text \d+"):
        model_pairs(Teacher(model, 1), TEXTS)


def test_scaling_makes_the_loss_an_fvu() -> None:
    pairs = arrays()
    scaling = scaling_of(pairs)
    block = whole(pairs, "train")
    x, y = scaling.inputs(block.x), scaling.outputs(block.y)
    assert float(x.mean(0).abs().max()) < 1e-4
    assert abs(float(x.square().mean()) - 1) < 1e-4
    assert abs(float(y.square().mean()) - 1) < 1e-4  # so predicting the mean has loss 1 = FVU 1


@pytest.mark.parametrize("name", ["gaussian", "kurtosis", "mixture"])
def test_resampled_inputs_keep_mean_and_covariance_and_the_teacher_labels_them(name: str) -> None:
    pairs = arrays(40_000, buffer=40_000)
    made = control_pairs(name, pairs, teach, seed=3)
    mean, covariance = moments(pairs)
    ours, cov = moments(made)
    scale = float(covariance.diagonal().mean())
    assert float((ours - mean).abs().max()) < 0.06 * scale**0.5
    assert float((cov - covariance).abs().max()) < 0.06 * scale
    block = whole(made, "test")
    torch.testing.assert_close(block.y, teach(block.x))
    assert [count(made, split) for split in SPLITS] == [count(pairs, split) for split in SPLITS]


def test_kurtosis_is_kept_where_gaussian_loses_it() -> None:
    pairs = arrays(60_000)
    mean, covariance = moments(pairs)
    values, vectors = torch.linalg.eigh(covariance)

    def excess(source) -> np.ndarray:
        z = (whole(source, "train").x.double() - mean) @ vectors / values.sqrt()
        return stats.kurtosis(z.numpy())

    real = excess(pairs)
    assert real.max() > 4
    np.testing.assert_allclose(excess(control_pairs("kurtosis", pairs, teach)), real, atol=1.0)
    assert np.abs(excess(control_pairs("gaussian", pairs, teach))).max() < 0.2


def test_mixture_keeps_clusters_that_a_gaussian_smears() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 6, generator=draw) * 8

    def block(n: int) -> Block:
        x = centres[torch.randint(0, 5, (n,), generator=draw)] + 0.3 * torch.randn(n, 6, generator=draw)
        return Block(x, teach(x), None)

    pairs = ArrayPairs("clusters", {"train": block(4000), "validation": block(400), "test": block(400)})

    def near(source) -> float:
        return float((torch.cdist(whole(source, "test").x, centres).amin(1) < 2).float().mean())

    assert near(control_pairs("mixture", pairs, teach)) > 0.9
    assert near(control_pairs("gaussian", pairs, teach)) < 0.2


def test_shuffled_outputs_cannot_be_learned_and_a_shuffled_teacher_is_another_function() -> None:
    pairs = arrays(8000)
    assert baseline_fvu(pairs)["linear"] < 0.5
    assert baseline_fvu(control_pairs("shuffled-outputs", pairs, teach))["linear"] > 0.98
    teacher = Teacher(tiny_model("llama"), 1)
    real = model_pairs(teacher, TEXTS)
    before = {n: t.clone() for n, t in teacher.model.body.state_dict().items()}
    made = control_pairs("shuffled-teacher", real, teacher)
    assert torch.equal(whole(made, "train").x, whole(real, "train").x)
    assert not torch.allclose(whole(made, "train").y, whole(real, "train").y, atol=1e-2)
    assert all(torch.equal(before[n], t) for n, t in teacher.model.body.state_dict().items())  # and is put back
    with pytest.raises(InputError, match="control: 'noise' is none of"):
        control_pairs("noise", pairs, teach)


def test_baselines_find_what_they_are_made_for() -> None:
    draw = torch.Generator().manual_seed(0)
    embedding, table = torch.randn(9, 4, generator=draw), torch.randn(9, 3, generator=draw)

    def block(n: int, kind: str) -> Block:
        tokens = torch.randint(0, 9, (n,), generator=draw)
        x = torch.randn(n, 6, generator=draw)
        y = {"linear": x[:, :3] * 2 + 1, "token": table[tokens], "embedding": embedding[tokens] @ torch.ones(4, 3)}[kind]
        return Block(x, y + 0.1 * torch.randn(n, 3, generator=draw), tokens)

    def found(kind: str) -> dict[str, float]:
        pairs = ArrayPairs(kind, {"train": block(4000, kind), "validation": block(500, kind), "test": block(500, kind)})
        return baseline_fvu(pairs, embedding)

    assert found("linear")["linear"] < 0.02
    assert found("linear")["token mean"] > 0.95
    assert found("token")["token mean"] < 0.05
    assert found("token")["linear"] > 0.95
    assert found("embedding")["token embedding, linear"] < 0.05


def test_fvu_of_known_predictors() -> None:
    pairs = arrays()
    y = whole(pairs, "test").y
    assert fvu(teach, pairs) < 1e-10
    assert abs(fvu(lambda x: y.mean(0).expand(len(x), -1), pairs) - 1) < 1e-5
    assert abs(fvu(lambda x: 2 * teach(x) - y.mean(0), pairs) - 1) < 1e-4


def test_dictionary_data_have_the_sparsity_that_they_are_given() -> None:
    teacher = DictionaryTeacher(DictionarySettings(tokens=2000))
    pairs = dictionary_pairs(teacher)
    sparse = whole(pairs, "train").x
    gauss = whole(control_pairs("gaussian", pairs, teacher), "train").x
    assert abs(teacher.firing(sparse) - teacher.settings.active) < 1  # one in 300 neurons fires by leakage
    spread = [float((x @ teacher.atoms.T > teacher.settings.threshold).sum(1).float().std()) for x in (sparse, gauss)]
    assert spread[0] < 0.6 * spread[1]  # a Gaussian input fires any number of neurons


def test_pieces_keep_every_word() -> None:
    text = " ".join(f"w{i}" for i in range(300)) + " " + "x" * 90
    cut = pieces([text, "short"], 50)
    assert " ".join(cut) == text + " short"
    assert max(map(len, cut[:-2])) <= 50


def test_padding_is_kept_as_the_source_reads_it() -> None:
    """Eight lines at a time, padded on the tokenizer's side, every position a vector: against transformers alone."""
    model = tiny_model("llama")
    model.tokenizer.padding_side = "left"
    texts = [f"{'some words ' * (i % 5 + 1)}and number {i}" for i in range(60)]
    teacher = Teacher(model, 1)
    documents = np.arange(60) // 4
    kept = model_pairs(teacher, texts, DistillSettings(layer=1, padding="keep"), documents=documents)
    left_out = model_pairs(teacher, texts, DistillSettings(layer=1), documents=documents)
    expected = 0
    for split in SPLITS:
        block = whole(kept, split)
        chosen = [t for t, d in zip(texts, documents, strict=True) if d in set(block.documents.tolist())]
        rows = []
        for start in range(0, len(chosen), 8):
            batch = model.tokenizer(chosen[start : start + 8], padding=True, return_tensors="pt")
            seen: list[torch.Tensor] = []
            hook = model.body.layers[1].mlp.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            model.body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            hook.remove()
            rows.append(seen[0].reshape(-1, seen[0].shape[-1]))
        torch.testing.assert_close(block.x, torch.cat(rows), atol=1e-5, rtol=1e-4)
        expected += len(block.x)
    assert expected > sum(len(whole(left_out, split).x) for split in SPLITS) + 60  # padding, and the first token of each


def test_raw_wikitext_is_parted_by_articles(tmp_path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text(" \n = One = \n \n a line . \n = = Part = = \n \n more \n \n = Two = \n \n text \n", encoding="utf-8")
    assert [text.split("\n")[0].strip() for text in read_texts(file)] == ["= One =", "= Two ="]
    assert units_of(read_texts(file), 100, "keep")[1].tolist() == [0, 0, 0, 0, 1, 1]
    assert len(units_of(read_texts(file), 100, "drop")[0]) == 2


def test_a_control_of_padding_needs_padding() -> None:
    with pytest.raises(InputError, match="control: no-padding is a control of padding that is kept"):
        DistillSettings(control=("no-padding",))
