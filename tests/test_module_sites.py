"""Any module by its name as a site of circuits: in a model that is loaded, and of what was recorded of one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moescope
from moescope.capture import encode
from moescope.capture.activations import activations
from moescope.capture.record import Recorded
from moescope.errors import InputError
from moescope.intervene import intervene
from moescope.models import from_model, load, parse_sites
from moescope.study.result import StudyResult
from moescope.tasks import load_task
from moescope.types import Neuron, Site
from tests.architectures import tiny_model
from tests.made_images import PLANTED, noisy, planted, striped, tiny

QUICK: dict[str, Any] = {"n_permutations": 199, "n_label_permutations": 99, "ks": (1, 2), "k": 2, "examples": 0}
GATE = "module:layers.*.mlp.act_fn"


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


# In a model


def test_what_a_module_gives_is_read_and_replaced_there() -> None:
    model, text = moescope.load_model("dense-tiny"), "It rained on the hills for days."
    sites = parse_sites(f"{GATE}:1,3", model)
    assert sites == (Site(GATE, 1), Site(GATE, 3))
    seen: list[Tensor] = []
    read = activations(model, [text], sites)[0, 1]
    with moescope.record(model, "layers.3.mlp.act_fn") as store:
        model.body(input_ids=torch.from_numpy(encode(model, [text])[0][None].astype(np.int64)))
    np.testing.assert_allclose(read, store.y[-1].numpy(), atol=1e-5)
    handle = model.tap_point(Site("mlp_act", 3)).attach(seen.append)  # type: ignore[arg-type]
    ids = torch.tensor([[5, 6, 7]])
    try:
        with intervene(model, [Neuron(Site(GATE, 3), 11)], "zero"):
            model.body(input_ids=ids)
        model.body(input_ids=ids)
    finally:
        handle.remove()
    off, on = seen
    assert float(off[..., 11].abs().max()) == 0 < float(on[..., 11].abs().max())  # what is gated by nought is nought
    assert torch.equal(off[..., 12], on[..., 12])


@pytest.mark.parametrize(
    ("asked", "site"),
    [
        ("module:layers.*", Site("resid", 1)),
        ("module:layers.1.mlp", Site("mlp_out", 1)),
        ("module:layers.1.self_attn.o_proj", Site("attn_out", 1)),
        ("module:embed_tokens", Site("embed", 0)),
        ("module:norm", Site("module:norm", 3)),
        ("module:layers.1.mlp.gate_proj", Site("module:layers.*.mlp.gate_proj", 1)),
        ("module:layers.*.mlp.gate_proj:1", Site("module:layers.*.mlp.gate_proj", 1)),
    ],
)
def test_a_module_that_is_a_site_already_is_that_site(asked: str, site: Site) -> None:
    """So that what the skip connection carries is known to be carried, whatever it is called."""
    found = parse_sites(asked, tiny_model("llama"))
    assert site in found
    assert parse_sites(str(found[0]), tiny_model("llama")) == found[:1]


def test_names_that_name_no_vector_of_a_token_are_refused() -> None:
    model = tiny_model("llama")
    for name, why in (
        ("layers.1.mpl", r"site: .* has no module 'layers\.1\.mpl'; near are layers\.1\.mlp"),
        ("layers", "does not run when the model does"),
        ("layers.*.mlp:7", "the model has layers 0-3"),
        ("norm:0", r"does not exist: .* has module:norm:3"),
    ):
        with pytest.raises(InputError, match=why):
            parse_sites(f"module:{name}", model)
    pictures = from_model(*tiny("vit"))
    with pytest.raises(InputError, match="not a vector of each"):
        parse_sites("module:embeddings.patch_embeddings", pictures)

    class Twice(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x)) * 0 + self.inner(x)

    class Map(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(1, 2)  # as wide as the text is long

    module, _ = tiny("vit")
    module.layers[1].mlp.activation_fn = Twice(module.layers[1].mlp.activation_fn)
    with pytest.raises(InputError, match="runs 3 times in one pass"):
        parse_sites("module:layers.1.mlp.activation_fn.inner", from_model(module, tiny("vit")[1]))
    model.body.norm.add_module("map", Map())
    handle = model.body.norm.register_forward_hook(lambda m, args, out: (m.map(out), out)[1])
    said = ""
    try:
        parse_sites("module:norm.map", model)
    except InputError as error:
        said = str(error)
    finally:
        handle.remove()
        del model.body.norm.map
    assert "as many numbers as there are tokens" in said


def scaled() -> tuple[Any, Any]:
    """The planted encoder, whose neurons are read before they are doubled: a module that is no site otherwise."""
    module, processor = planted()
    module.layers[0].mlp.activation_fn = nn.Sequential(nn.GELU(), Doubled())
    return module, processor


def test_a_planted_neuron_is_found_in_a_module_by_its_name(tmp_path: Path) -> None:
    site = "module:layers.0.mlp.activation_fn.0"
    settings = moescope.CircuitSettings(site=site, position="mean", twin=False, n_folds=3, **QUICK)
    found = moescope.circuits(scaled(), striped(tmp_path / "stripes"), settings)
    neurons = found.circuits["stripes"].neurons
    assert {str(n.site) for n in neurons} == {"module:layers.*.mlp.activation_fn.0:0"}
    assert {n.index for n in neurons} & {PLANTED, PLANTED + 1}
    claims = {c.statement.split(": ", 1)[1]: c for c in found.claims}
    assert claims["2 neurons tell the classes apart"].outcome == "holds"
    assert claims["the first layers, to layer 0, keep what all layers know"].outcome == "not tested"
    found.save(tmp_path / "out")
    assert moescope.load(tmp_path / "out").circuits == found.circuits


def test_an_intervention_is_in_a_layer() -> None:
    settings = moescope.CircuitSettings(site="module:norm", ablate="mean", **QUICK)
    with pytest.raises(InputError, match=r"site: module:norm:5 of dense-tiny is in no layer"):
        moescope.circuits("dense-tiny", "uci-sentiment", settings)


# Of what was recorded

N = 60


def net(seed: int, *, moved: bool = False) -> nn.Sequential:
    """Neuron 5 of module 1 answers input 0, where ``moved``."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 8))
    if moved:
        with torch.no_grad():
            made[0].weight[5] = torch.tensor([3.0, 0, 0, 0, 0, 0, 0, 0])
            made[0].bias[5] = 0.0
    return made


def recorded(made: nn.Module, shift: float = 1.0) -> Recorded:
    """Documents 0..N-1 of one class and N..2N-1 of another, in which input 0 is larger; two passes over each."""
    x = torch.randn(2 * N, 6, 8, generator=torch.Generator().manual_seed(3))
    x[N:, :, 0] += shift
    with moescope.record(made, "1") as store:
        for part in (slice(0, 3), slice(3, 6)):
            for at in range(0, 2 * N, 30):
                store.of(np.arange(at, at + 30))
                made(x[at : at + 30, part])
    return store


Y = np.repeat(["still", "moved"], N)


@pytest.fixture(scope="module")
def found() -> StudyResult:
    store = recorded(net(1, moved=True))
    store.twin = recorded(net(2))
    noise = np.random.default_rng(0).permutation(2 * N) % 2
    return moescope.circuits(store, {"moves": Y, "noise": noise}, moescope.CircuitSettings(**QUICK))


def claim(result: StudyResult, statement: str) -> moescope.types.Claim:
    return next(c for c in result.claims if c.statement.startswith(statement))


def test_the_neuron_is_found_and_noise_is_not(found: StudyResult) -> None:
    assert found.circuits["moves"].neurons[0] == Neuron(Site("module:1", 0), 5)
    held = claim(found, "moves: 2 neurons tell")
    assert (held.outcome, held.explanation) == ("holds", "none found")
    assert "beyond a randomly initialised twin" in held.words
    assert claim(found, "noise: 2 neurons tell").outcome in ("inconclusive", "contradicted")


def test_what_labels_alone_cannot_have_is_said_to_be_not_run(found: StudyResult) -> None:
    held = claim(found, "moves: 2 neurons tell")
    assert "not run: trivial cues (labels alone were given" in held.words
    assert "trivial cue" not in held.words.split("; not run")[0]
    assert held.control is not None
    assert held.control.name == "majority class"
    for statement in ("moves: the circuit reads the text", "moves: the circuit works where surface cues"):
        assert claim(found, statement).outcome == "not tested"
    assert found.meta["data"]["moves"]["n"] == 2 * N
    assert found.meta["recorded"] == {"documents": 2 * N, "vectors": 12 * N, "seen": 12 * N}
    alone = moescope.circuits(recorded(net(1, moved=True)), {"moves": Y}, moescope.CircuitSettings(**QUICK))
    assert "an untrained twin (none was recorded: store.twin)" in claim(alone, "moves: 2 neurons tell").words


def test_what_an_untrained_module_knows_too_is_no_finding() -> None:
    store = recorded(net(1), shift=2.5)
    store.twin = recorded(net(2), shift=2.5)
    result = moescope.circuits(store, {"moves": Y}, moescope.CircuitSettings(**QUICK))
    told = claim(result, "moves: 2 neurons tell")
    assert told.explanation != "none found"
    store.twin = store
    with pytest.raises(AssertionError, match="is what it controls"):
        moescope.circuits(store, {"moves": Y}, moescope.CircuitSettings(**QUICK))
    store.twin = recorded(nn.Sequential(nn.Linear(8, 20), nn.ReLU()))
    with pytest.raises(InputError, match=r"store\.twin: 120 documents of width 20 beside 120 of 40"):
        moescope.circuits(store, {"moves": Y}, moescope.CircuitSettings(**QUICK))


def test_images_of_the_documents_bring_their_cues(tmp_path: Path) -> None:
    """A module that answers brightness alone is explained by it."""
    task = load_task(noisy(tmp_path / "set", 40, shade=40.0))
    pixels = torch.stack([torch.tensor(moescope.files.image.read_image(e.text).pixels).float() for e in task.examples])
    made = net(4)
    with moescope.record(made, "1") as store:
        store.of(np.arange(20, 80))  # half of the first class is left out
        made(pixels.reshape(len(task), -1, 8)[20:, :24] / 255)
    result = moescope.circuits(store, {"set": task}, moescope.CircuitSettings(**QUICK))
    told = next(c for c in result.claims if c.id == "H2")
    assert told.explanation == "trivial cue" or told.outcome != "holds"
    assert "brightness" in told.words or "red" in told.words
    assert told.measured == 1.0
    assert result.meta["data"]["set"]["n"] == 60


def test_the_other_side_of_a_module(found: StudyResult) -> None:
    settings = moescope.CircuitSettings(site="input", **QUICK)
    result = moescope.circuits(recorded(net(1, moved=True)), {"moves": Y}, settings)
    assert str(result.circuits["moves"].neurons[0].site) == "module:1.input:0"


def test_what_does_not_fit_is_said_before_the_work() -> None:
    store, quick = recorded(net(1)), moescope.CircuitSettings(**QUICK)
    for tasks, settings, why in (
        ({"moves": Y[:70]}, quick, "moves: document 70 was recorded and has no label"),
        ({"moves": ["a"] * 2 * N}, quick, "all documents have the label 'a'"),
        ({"moves": Y}, moescope.CircuitSettings(ablate="mean", **QUICK), "ablate: needs the running model"),
        ({"moves": Y}, moescope.CircuitSettings(site="mlp_act", **QUICK), "site: 'mlp_act': of what was recorded there is"),
        ({"moves": Y}, moescope.CircuitSettings(position=3, **QUICK), "position: a document of what was recorded is the mean"),
        ({"moves": Y}, moescope.CircuitSettings(**{**QUICK, "k": 30}), "over half of the 40 neurons"),
        ("uci-sentiment?limit=40", quick, "document 119 was recorded, and there are 40 rows"),
    ):
        with pytest.raises(InputError, match=why):
            moescope.circuits(store, tasks, settings)
    with moescope.record(net(1), "1") as empty:
        pass
    with pytest.raises(InputError, match="was not run while it was recorded"):
        moescope.circuits(empty, {"moves": Y}, quick)


def test_a_loaded_folder_names_its_modules_alike(tmp_path: Path) -> None:
    module, processor = tiny("vit")
    module.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert [str(s) for s in parse_sites("module:layers.*.mlp.fc1", model)] == [
        "module:layers.*.mlp.fc1:0",
        "module:layers.*.mlp.fc1:1",
    ]
    assert model.width(Site("module:layers.*.mlp.fc1", 1)) == 64
    with moescope.record(model, "layers.1.mlp.fc1") as store:
        assert store.name == "layers.1.mlp.fc1"
