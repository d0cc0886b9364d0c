"""Students against their definition, routers against exhaustive search, teachers against the model itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moescope.errors import InputError
from moescope.studies.distill.accounting import per_neuron, spec_cost
from moescope.studies.distill.routers import ProductKeyRouter, build_router
from moescope.studies.distill.save import load_student, save_student
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.start import start_from_teacher
from moescope.studies.distill.students import LayerShape, Scaling, Student
from moescope.studies.distill.study import equal_cost_students
from moescope.studies.distill.teacher import Teacher
from tests.architectures import SETTINGS, tiny_model

GLU = LayerShape(12, 10, "silu", True)
PLAIN = LayerShape(12, 10, "gelu", False)
MOE = {"shared": 3, "experts": 36, "active": 4, "rank": 8}


def inputs(n: int = 23, d: int = 12) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(5))


def by_definition(student: Student, x: Tensor) -> Tensor:
    """The published formula, token by token and expert by expert, from all router scores."""
    spec = student.spec
    out = []
    for row in x:
        y = student.bias.clone()
        act = student.experts.activation
        if student.shared is not None:
            y = y + student.shared.all(row[None])[0]
        scores = {
            "full": lambda r=row: student.router.weight @ r,
            "low-rank": lambda r=row: student.router.up @ (student.router.down @ r),
            "product-key": lambda r=row: _product_scores(student.router, r),
        }[spec.router]()
        best = scores.topk(spec.active)
        gates = F.softmax(spec.beta * best.values, dim=0)
        for gate, expert in zip(gates, best.indices, strict=True):
            for neuron in range(int(expert) * spec.width, (int(expert) + 1) * spec.width):
                bank = student.experts
                hidden = act(bank.w_in[neuron] @ row + bank.bias[neuron])
                if bank.w_lin is not None:
                    hidden = hidden * (bank.w_lin[neuron] @ row + bank.bias_lin[neuron])
                y = y + gate * hidden * bank.w_out[neuron]
        out.append(y)
    return torch.stack(out)


def _product_scores(router: ProductKeyRouter, row: Tensor) -> Tensor:
    first, second = (router.query @ row).chunk(2)
    return ((router.rows @ first)[:, None] + (router.columns @ second)[None, :]).flatten()


@pytest.mark.parametrize("router", ["full", "low-rank", "product-key"])
@pytest.mark.parametrize("shape", [GLU, PLAIN])
@pytest.mark.parametrize("extra", [{}, {"width": 3}, {"activation": "linear"}, {"beta": 2.5}])
def test_moe_student_is_the_published_formula(router: str, shape: LayerShape, extra: dict) -> None:
    student = Student(StudentSpec(router=router, **MOE, **extra), shape, seed=1).double()
    with torch.no_grad():
        student.experts.bias.normal_()
    x = inputs().double()
    torch.testing.assert_close(student.run(x).y, by_definition(student, x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", ["transcoder", "skip-transcoder"])
def test_transcoder_keeps_the_largest_pre_activations(kind: str) -> None:
    student = Student(StudentSpec(kind=kind, experts=30, active=5), PLAIN, seed=2).double()
    with torch.no_grad():
        student.experts.bias.normal_()
        if student.skip is not None:
            student.skip.normal_()
    x = inputs().double()
    bank = student.experts
    best = (x @ bank.w_in.T + bank.bias).topk(5, dim=1)
    codes = torch.zeros(len(x), 30, dtype=torch.float64).scatter(1, best.indices, best.values.clamp(min=0))
    expected = codes @ bank.w_out + student.bias + (0 if student.skip is None else x @ student.skip.T)
    torch.testing.assert_close(student.run(x).y, expected)


def test_gradient_reaches_router_and_experts_and_equals_autograd_of_the_definition() -> None:
    student = Student(StudentSpec(router="low-rank", **MOE), GLU, seed=1).double()
    x = inputs().double()
    target = torch.randn(len(x), GLU.d_out, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = []
    for function in (lambda: student.run(x).y, lambda: by_definition(student, x)):
        student.zero_grad()
        (function() - target).square().sum().backward()
        grads.append({n: p.grad.to_dense().clone() for n, p in student.named_parameters()})
    for name in grads[0]:
        assert float(grads[0][name].abs().max()) > 0, name
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-9, rtol=1e-9)


def test_routers_start_at_one_temperature() -> None:
    """Same variance of scores whatever the structure, so that a comparison of routers is not one of gate sharpness."""
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    for router in ("full", "low-rank", "product-key"):
        torch.manual_seed(0)
        built = build_router(StudentSpec(router=router, experts=400, active=400, rank=32), 64)
        _, scores = built.choose(x, 400)
        assert 0.75 < float(scores.detach().var()) < 1.3, router


def test_calling_a_student_undoes_the_scaling() -> None:
    scaling = Scaling(torch.full((12,), 3.0), 2.0, torch.full((10,), -1.0), 5.0)
    student = Student(StudentSpec(kind="dense", shared=4), PLAIN, scaling)
    x = inputs().reshape(1, 23, 12)
    expected = student.run((x[0] - 3) / 2).y * 5 - 1
    torch.testing.assert_close(student(x), expected[None])


def test_seed_alone_decides_the_start() -> None:
    spec = StudentSpec(**MOE)
    torch.manual_seed(7)
    a = Student(spec, GLU, seed=3).state_dict()
    torch.manual_seed(8)
    b, c = Student(spec, GLU, seed=3).state_dict(), Student(spec, GLU, seed=4).state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["experts.w_in"], c["experts.w_in"])


def test_every_student_of_a_study_has_the_same_start() -> None:
    """A dense student from random weights beside experts from the teacher's would compare starts, not structures."""
    for start in ("random", "teacher"):
        specs = DistillSettings(layer=0, experts=36, active=(2, 4), start=start).students()
        specs |= equal_cost_students(specs, GLU, None)
        assert {spec.start for spec in specs.values()} == {start}
        assert len(specs) >= 6


def test_cost_counts_every_weight_that_a_token_reads() -> None:
    for spec in (
        StudentSpec(kind="dense", shared=7),
        StudentSpec(router="full", **MOE),
        StudentSpec(router="low-rank", **MOE, width=2),
        StudentSpec(router="product-key", **MOE),
        StudentSpec(kind="skip-transcoder", experts=30, active=5),
    ):
        student = Student(spec, GLU)
        matrices = {n: p.numel() for n, p in student.named_parameters() if p.dim() == 2}
        read = sum(size for name, size in matrices.items() if not name.startswith("experts."))
        share = spec.active / spec.experts if spec.experts else 0
        read += sum(size * share for name, size in matrices.items() if name.startswith("experts.") and spec.kind == "moe")
        if spec.kind == "skip-transcoder":  # its encoder is read whole
            read += matrices["experts.w_in"] + matrices["experts.w_out"] * share
        assert spec_cost(spec, GLU)[0] == round(read), spec.name
    assert per_neuron(GLU, True) == 12 * 2 + 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experts": 8, "active": 9}, "^active: 9 of 8"),
        ({"experts": 8, "active": 0}, "^active: 0 of 8"),
        ({"experts": 0, "active": 1}, "^experts: "),
        ({"kind": "dense"}, "^shared: "),
        ({"kind": "dense", "shared": 3, "experts": 5}, "^experts: "),
        ({"kind": "transcoder", "experts": 8, "active": 2, "width": 2}, "^kind: a transcoder"),
        ({"experts": 97, "active": 2, "router": "product-key"}, "take 100 instead"),
        ({"experts": 100, "active": 2, "router": "product-key", "rank": 7}, "even rank"),
        ({"experts": 8, "active": 2, "beta": 0.0}, "^beta: "),
        ({"experts": 8, "active": 2, "router": "random"}, "^router: "),
    ],
)
def test_a_spec_that_cannot_be_is_one_line(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StudentSpec(**fields)


def test_save_and_load(tmp_path) -> None:
    scaling = Scaling(torch.randn(12), 2.0, torch.randn(10), 5.0)
    student = Student(StudentSpec(**MOE, beta=1.5), GLU, scaling, seed=9)
    path = save_student(student, tmp_path / "student.safetensors", fingerprint="abc", layer=1)
    torch.testing.assert_close(load_student(path, fingerprint="abc")(inputs()), student(inputs()))
    with pytest.raises(InputError, match="fingerprint abc, not xyz"):
        load_student(path, fingerprint="xyz")


# --- teachers ------------------------------------------------------------------------------------------------------------

DENSE = [name for name in ("llama", "phi3", "gemma3", "gpt2", "gpt_neox", "opt", "bert", "qwen3") if name in SETTINGS]


@pytest.mark.parametrize("name", [*DENSE, "olmoe"])
def test_teacher_gives_what_the_layer_gives(name: str) -> None:
    """Through the running model and as a function on bare vectors: the same outputs."""
    from moescope.capture import capture

    model = tiny_model(name)
    teacher = Teacher(model, 1)
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with capture(model, [teacher.site_in, teacher.site_out]) as session:
        seen = session.run(ids)
    x, y = (seen[site].flatten(0, 1) for site in (teacher.site_in, teacher.site_out))
    torch.testing.assert_close(teacher(x), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DENSE)
def test_neurons_add_up_to_the_layer(name: str) -> None:
    teacher = Teacher(tiny_model(name), 1)
    x = inputs(20, 32)
    torch.testing.assert_close(teacher.neurons(x), teacher(x), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_dense_student_as_wide_as_its_teacher_can_start_as_its_teacher(name: str) -> None:
    """Exact, in scaled coordinates too: this is what makes the start meaningful."""
    teacher = Teacher(tiny_model(name), 1)
    neurons = teacher.neurons
    scaling = Scaling(torch.randn(32), 1.7, neurons.bias_out, 0.6)
    student = Student(StudentSpec(kind="dense", shared=len(neurons.w_in), start="teacher"), teacher.shape, scaling)
    x = inputs(20, 32)
    start_from_teacher(student, neurons, x)
    torch.testing.assert_close(student(x), teacher(x), atol=1e-4, rtol=1e-3)


def test_experts_of_a_block_are_not_mistaken_for_neurons() -> None:
    with pytest.raises(InputError, match="use start=random"):
        _ = Teacher(tiny_model("olmoe"), 1).neurons


def test_layer_that_is_not_there_or_has_no_mlp() -> None:
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"layer=9: .* layers 0 to 3"):
        Teacher(model, 9)
    taps = model.structure.taps
    for kind in ("mlp_in", "mlp_act", "mlp_out"):
        del taps[next(site for site in taps if site.kind == kind and site.layer == 2)]
    with pytest.raises(InputError, match=r"layer 2 of .* has no MLP; layers with one: 0, 1, 3"):
        Teacher(model, 2)
