"""Vision encoders and tasks of images: what is read, what is refused, what the surface alone explains."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import moescope
from moescope.capture import encode
from moescope.capture.activations import activations
from moescope.errors import InputError, Note
from moescope.files.image import read_image
from moescope.models import from_model, load, random_twin
from moescope.study.result import StudyResult
from moescope.tasks import ImageTask, group_folds, load_task, matched_subset, surface_baselines
from moescope.tasks.duplicates import regroup
from moescope.types import Site
from tests.architectures import tiny_tokenizer
from tests.made_images import PLANTED, noisy, planted, striped, tiny

QUICK = {"n_permutations": 199, "n_label_permutations": 99, "ks": (1, 2), "k": 2, "n_folds": 3, "examples": 1}


def scores(task: moescope.Task) -> dict[str, float]:
    y, groups = (np.array([getattr(e, name) for e in task.examples]) for name in ("label", "group"))
    frame = surface_baselines(task, group_folds(y, groups, n_folds=4, seed=0), n_boot=50)
    return dict(zip(frame["control"], frame["accuracy"], strict=True))


# Encoders


@pytest.mark.parametrize(("kind", "before"), [("vit", 1), ("dinov2", 1), ("clip", 1), ("siglip", 0)])
def test_sites_of_an_encoder_are_its_hidden_states(kind: str, before: int, tmp_path: Path) -> None:
    module, processor = tiny(kind)
    module.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model")
    paths = [e.text for e in load_task(noisy(tmp_path / "images", 2)).examples]
    seen = activations(model, paths, "resid", position="mean")
    pixels = torch.cat([processor(images=[Image.open(p).convert("RGB")], return_tensors="pt")["pixel_values"] for p in paths])
    states = model.module(pixel_values=pixels, output_hidden_states=True).hidden_states
    wanted = torch.stack([state[:, before:].mean(1) for state in states[1:]], 1).numpy()
    assert (model.tokenizer.places, model.tokenizer.before) == (16 + before, before)
    assert model.reads_images
    assert not model.has_head
    np.testing.assert_allclose(seen, wanted, atol=1e-5)
    if before:
        first = activations(model, paths, "resid", position="cls")[:, 0]
        np.testing.assert_allclose(first, states[1][:, 0].numpy(), atol=1e-5)
    assert model.fingerprint == load((module, processor)).fingerprint
    assert random_twin(model).fingerprint != model.fingerprint


def test_a_row_of_ids_names_its_image_and_nothing_else(tmp_path: Path) -> None:
    model = load(tiny("vit"))
    paths = [e.text for e in load_task(noisy(tmp_path / "images", 2)).examples]
    one, other = encode(model, paths), encode(model, paths[::-1])
    np.testing.assert_array_equal(one[0], other[len(paths) - 1])
    assert len({row.tobytes() for row in one[:]}) == len(paths)
    with pytest.raises(InputError, match="of no image that was read"):
        model.body(torch.zeros(1, 17, dtype=torch.long))
    model.tokenizer._ready.clear()
    Image.new("L", (16, 16)).save(paths[0])
    with pytest.raises(InputError, match="changed while it was studied"):
        activations(model, one, "resid", position="mean")


def test_a_classifier_in_a_folder_is_the_same_at_every_load(tmp_path: Path) -> None:
    """Its pooler is not in the file, and is drawn anew each time."""
    for part in tiny("vit-classifier"):
        part.save_pretrained(tmp_path)
    assert load(tmp_path).fingerprint == load(tmp_path).fingerprint


def test_what_has_no_one_stream_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import SwinConfig, SwinModel, VideoMAEConfig, VideoMAEModel, ViTMAEConfig, ViTMAEModel

    swin = SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2]))
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16}
    processor = tiny("vit")[1]
    for module, why in (
        (swin, "'swin' is not supported: its stages merge patches"),
        (ViTMAEModel(ViTMAEConfig(patch_size=4, **small)), "'vit_mae' is not supported: it leaves out random patches"),
        (VideoMAEModel(VideoMAEConfig(patch_size=4, **small)), "'videomae' is not supported: it reads video"),
    ):
        with pytest.raises(InputError, match=why):
            load((module, processor))
    with pytest.raises(InputError, match=r"has no image processor; give \(model, processor\)"):
        from_model(tiny("vit")[0], None)
    tiny("vit")[0].save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match=r"has no image processor"):
        load(tmp_path / "bare")


# Files


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0" * 1000)) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"bomb\.png.*pixels; make it smaller"):
        read_image(bomb)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cut"])
def test_a_damaged_image_is_named(data: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (40, 40), (1, 2, 3)).save(path)
    path.write_bytes(path.read_bytes()[:60] if data == "cut" else bytes(data))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"x\.png: is (empty|no image|damaged)"):
        read_image(path)


def test_grey_of_sixteen_bits_is_not_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x2000, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").pixels.max() == 0x20


@pytest.mark.parametrize("path", ["../out.png", "/etc/passwd", "a/../../out.png", "C:\\out.png", ".hidden.png"])
def test_a_path_does_not_lead_out_of_the_tables_folder(path: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "out.png")
    (tmp_path / "in" / "table.csv").write_text(f"image,label\n{path},a\nb.png,b\n")
    with pytest.raises(InputError, match="not a plain file name"):
        load_task(f"{tmp_path}/in/table.csv?image=image")


def test_a_link_does_not_lead_out_either(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "out.png")
    noisy(tmp_path / "in", 2)
    (tmp_path / "in" / "a" / "link.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(InputError, match="a link leads out of"):
        load_task(tmp_path / "in")


# Tasks


def test_a_folder_and_a_table_are_one_task(tmp_path: Path) -> None:
    folder = noisy(tmp_path / "set", 4)
    (folder / "table.csv").write_text("picture,kind\n" + "".join(f"{k}/{i:03d}.png,{k}\n" for k in "ab" for i in range(4)))
    one, other = load_task(folder), load_task(f"set={folder}/table.csv?image=picture&label=kind")
    assert isinstance(one, ImageTask)
    assert one.classes == ("a", "b")
    assert one.sha256 == other.sha256
    assert len(load_task(folder, limit=4)) == 4
    assert load_task(folder, limit=4).classes == ("a", "b")
    (folder / "a" / "notes.md").write_text("x")
    with pytest.warns(Note, match=r"left out what is no image by its name \(1 \.md\)"):
        load_task(folder)


def test_images_of_equal_pixels_share_a_group(tmp_path: Path) -> None:
    folder = noisy(tmp_path / "set", 3)
    twin = Image.open(folder / "a" / "000.png")
    twin.save(folder / "b" / "again.bmp")
    with pytest.warns(Note, match="1 images lie in more than one class"):
        task = load_task(folder)
    groups = {Path(e.text).name + str(e.label): e.group for e in task.examples}
    assert groups["000.png0"] == groups["again.bmp1"]
    assert len(set(groups.values())) == len(task) - 1
    (folder / "t.csv").write_text("image,label,group\na/000.png,a,1\nb/again.bmp,b,2\na/001.png,a,3\nb/001.png,b,4\n")
    with pytest.warns(Note):
        found = regroup(load_task(f"{folder}/t.csv?image=image&group=group"), 1)
    assert found.merged == 2
    assert found.note.startswith("t: leakage: 2 images are those of another group (a/000.png, b/again.bmp)")


def test_the_shipped_digits_are_there() -> None:
    task = load_task("digits-made", limit=40)
    assert task.classes == ("made", "real")
    assert isinstance(task, ImageTask)
    assert {(s.kind, s.width) for s in task.surfaces()} == {("PNG", 8)}


# Surface nulls


@pytest.mark.parametrize(
    ("options", "tells", "silent"),
    [
        ({"shade": 40.0}, "mean brightness", "JPEG quality"),
        ({"quality": (60, 95)}, "JPEG quality", "mean brightness"),
        ({}, None, "mean brightness"),
    ],
)
def test_a_cue_is_found_where_it_is_and_not_elsewhere(
    options: dict[str, object], tells: str | None, silent: str, tmp_path: Path
) -> None:
    found = scores(load_task(noisy(tmp_path / "set", **options)))  # type: ignore[arg-type]
    assert found[silent] < 0.7
    if tells is not None:
        assert found[tells] > 0.95
    else:
        assert max(found.values()) < 0.75


def test_file_type_size_and_variance_are_cues(tmp_path: Path) -> None:
    folder = noisy(tmp_path / "kind", 12)
    for path in (folder / "b").iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    found = scores(load_task(folder))
    assert found["file type"] == 1.0
    assert found["file size"] == 1.0
    folder = noisy(tmp_path / "wide", 12)
    for path in (folder / "b").iterdir():
        image = Image.open(path)
        image.resize((20, 16)).save(path)
    found = scores(load_task(folder))
    assert found["image size"] == 1.0
    assert found["pixels"] == 1.0
    folder = noisy(tmp_path / "flat", 12)
    for path in (folder / "b").iterdir():
        pixels = np.asarray(Image.open(path)).astype(float)
        Image.fromarray((pixels.mean() + (pixels - pixels.mean()) / 3).astype(np.uint8)).save(path)
    assert scores(load_task(folder))["variance of brightness"] > 0.95


def test_matched_rows_are_alike_in_brightness_and_quality(tmp_path: Path) -> None:
    task = load_task(noisy(tmp_path / "set", 60, shade=6.0))
    rows = matched_subset(task)
    kept = np.array([task.examples[i].label for i in rows])
    assert 20 < len(rows) < len(task)
    assert (kept == 0).sum() == (kept == 1).sum()
    apart = matched_subset(load_task(noisy(tmp_path / "far", 20, quality=(40, 95))))
    assert len(apart) == 0


# The study


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = striped(tmp_path_factory.mktemp("stripes") / "stripes")
    settings = moescope.CircuitSettings(site="mlp_act:0", position="mean", **QUICK)  # type: ignore[arg-type]
    return moescope.circuits(planted(), folder, settings)


def test_the_neuron_that_carries_a_class_is_found(stripes: StudyResult) -> None:
    neurons = stripes.circuits["stripes"].neurons
    assert {n.site for n in neurons} == {Site("mlp_act", 0)}
    assert {n.index for n in neurons} & {PLANTED, PLANTED + 1}
    claim = next(c for c in stripes.claims if "tell the classes apart" in c.statement and c.id == "H2")
    assert (claim.outcome, claim.explanation) == ("holds", "none found")


def test_a_template_does_not_apply_to_images_and_says_so(stripes: StudyResult) -> None:
    claim = next(c for c in stripes.claims if "not only its last words" in c.statement)
    assert claim.outcome == "not tested"
    assert claim.words == "not applicable: an image has no template"
    assert not [c for c in stripes.meta["controls"] if "fixed template" in c["control"]]
    assert [c for c in stripes.meta["controls"] if "random twin" in c["control"]]


@pytest.mark.parametrize("options", [{"shade": 40.0}, {"quality": (60, 95)}])
def test_a_class_that_is_a_cue_is_said_to_be_one(options: dict[str, object], tmp_path: Path) -> None:
    folder = noisy(tmp_path / "set", **options)  # type: ignore[arg-type]
    settings = moescope.CircuitSettings(position="mean", twin=False, **QUICK)  # type: ignore[arg-type]
    found = moescope.circuits(tiny("vit"), folder, settings)
    claim = next(c for c in found.claims if c.id == "H2")
    assert claim.explanation == "trivial cue" or claim.outcome != "holds"


def test_an_image_is_read_at_its_class_token_unless_said_otherwise(tmp_path: Path) -> None:
    folder = noisy(tmp_path / "set", 12)
    settings = moescope.CircuitSettings(twin=False, **{**QUICK, "n_label_permutations": 0})  # type: ignore[arg-type]
    found = moescope.circuits(tiny("vit"), folder, settings)
    assert found.meta["settings"]["position"] == "cls"
    assert any("read at its class token" in note for note in found.meta["notes"])
    assert next(c for c in found.claims if c.id == "H2").outcome != "holds"  # nothing tells the classes apart
    with pytest.raises(InputError, match="has no class token"):
        moescope.circuits(tiny("siglip"), folder, moescope.CircuitSettings(position="cls"))


def test_of_a_vision_language_model_the_text_model_alone_is_read(tmp_path: Path) -> None:
    part = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=4, **part),
        text_config=LlamaConfig(vocab_size=99, **part),
        image_token_id=98,
    )
    model = load((LlavaForConditionalGeneration(config), tiny_tokenizer()))
    assert model.sites("resid") == (Site("resid", 0),)
    with pytest.raises(InputError, match=r"of the vision-language model Llava.* the text model alone is read"):
        moescope.circuits(model, noisy(tmp_path / "set", 4))


def test_texts_and_images_are_not_mixed_up(tmp_path: Path) -> None:
    folder, model = noisy(tmp_path / "set", 4), tiny("vit")
    with pytest.raises(InputError, match="set is of images, and dense-tiny reads texts"):
        moescope.circuits("dense-tiny", folder)
    with pytest.raises(InputError, match="is of texts, and ViTModel reads images"):
        moescope.circuits(model, "uci-sentiment")
    (folder / "t.csv").write_text("image,text,label\na/000.png,What is it?,a\nb/000.png,What is it?,b\n")
    with pytest.raises(InputError, match=r"image= and text= in one row is a question to a vision-language model"):
        load_task(f"{folder}/t.csv?image=image&text=text")
    with pytest.raises(InputError, match="reads images, which exit does not"):
        moescope.exit(model, "uci-sentiment")
    with pytest.raises(InputError, match="set is of images, which exit does not read"):
        moescope.exit("dense-tiny", folder)
