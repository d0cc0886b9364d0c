"""The command of the distillation study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from moescope.cli.options import COMMON, Common, integers
from moescope.cli.output import finish, prepare, progress
from moescope.errors import InputError

if TYPE_CHECKING:
    from moescope.studies.distill import Student
    from moescope.study.result import StudyResult


def distill(
    model: str,
    /,
    *,
    layer: Annotated[int, Parameter(help="Whose MLP to distil.")],
    experts: Annotated[int, Parameter(help="Experts of each mixture-of-experts student.")] = 10_000,
    active: Annotated[
        str, Parameter(help="Experts that run for a token; several for a curve. As many neurons are shared.")
    ] = "16",
    router: Annotated[str, Parameter(help="full, low-rank, product-key; several with commas.")] = "low-rank",
    rank: Annotated[int, Parameter(help="Of low-rank routers and product-key queries.")] = 64,
    expert_width: Annotated[int, Parameter(help="Neurons of one expert.")] = 1,
    expert_activation: Annotated[Literal["model", "linear"], Parameter(help="Of the experts' neurons.")] = "model",
    beta: Annotated[float, Parameter(help="Inverse temperature of the gates' softmax.")] = 1.0,
    start: Annotated[
        Literal["random", "teacher"], Parameter(help="random as published, or the teacher's own neurons.")
    ] = "random",
    transcoders: Annotated[bool, Parameter(negative="", help="Also train transcoders of the same dictionary.")] = False,
    equal_cost: Annotated[bool, Parameter(help="Also train dense students of the same multiply-adds, router included.")] = True,
    control: Annotated[
        str,
        Parameter(help="gaussian, kurtosis, mixture, shuffled-teacher, shuffled-outputs, twin; several with commas, or none."),
    ] = "gaussian",
    lr: Annotated[str, Parameter(help="Learning rates to choose from on validation.")] = "0.001,0.003,0.01",
    seeds: Annotated[int, Parameter(help="Seeds of every student (3 for intervals).")] = 3,
    steps: Annotated[int | None, Parameter(help="Updates (default: --epochs passes over the data).")] = None,
    epochs: Annotated[int, Parameter(help="Passes over the training split.")] = 20,
    batch: Annotated[int, Parameter(help="Vectors in a step.")] = 1024,
    precision: Annotated[
        Literal["fp32", "bf16"], Parameter(help="Of the students' dense products and router scores.")
    ] = "fp32",
    revive: Annotated[
        bool, Parameter(negative="", help="Give dead experts a new start (not in the published protocol).")
    ] = False,
    tokens: Annotated[int | None, Parameter(help="Vectors to read (default: all of the text).")] = None,
    memory: Annotated[float, Parameter(help="GiB of vectors to keep; more are read again in every epoch.")] = 2.0,
    text: Annotated[
        Path | None, Parameter(help="A text file; blank lines part its texts (default: shipped WikiText-2).")
    ] = None,
    store: Annotated[Path | None, Parameter(help="A store of mlp_in and mlp_out of the layer, instead of text.")] = None,
    circuits: Annotated[Path | None, Parameter(help="A result of `moescope circuits` on this model, to compare with.")] = None,
    dictionary: Annotated[
        Path | None, Parameter(help="A safetensors file with W_dec of a sparse autoencoder, to compare experts with.")
    ] = None,
    checkpoint: Annotated[Path | None, Parameter(help="Where to keep checkpoints; run again to go on from them.")] = None,
    common: Common = COMMON,
) -> None:
    """Distil one MLP layer into dense and mixture-of-experts students, on its activations and on controls.

    The students of the first seed are kept in students/ of the result's folder.
    """
    from moescope.models import load
    from moescope.studies.distill import DistillSettings
    from moescope.studies.distill import distill as study

    folder = prepare(common.out, "distill", overwrite=common.overwrite)
    settings = DistillSettings(
        layer=layer,
        experts=experts,
        active=integers("--active", active),
        routers=tuple(_words(router)),  # type: ignore[arg-type]
        rank=rank,
        width=expert_width,
        expert_activation=expert_activation,
        beta=beta,
        start=start,
        transcoders=transcoders,
        equal_cost=equal_cost,
        controls=tuple(_words(control)) if control != "none" else (),
        lrs=_numbers(lr),
        seeds=seeds,
        steps=steps,
        epochs=epochs,
        batch=batch,
        precision=precision,
        revive=revive,
        tokens=tokens,
        memory=memory,
        batch_tokens=common.batch_tokens,
        seed=common.seed,
    )
    texts = None if text is None else read_texts(text)
    with progress() as report:
        loaded = load(model, head=True, **common.load_options())
        result, students = study(
            loaded,
            settings=settings,
            texts=texts,
            store=store,
            circuits=circuits,
            dictionary=dictionary,
            checkpoint=checkpoint,
            report=report,
        )
    _finish(result, students, folder, common)


def reproduce(model: str | None, common: Common) -> None:
    """`moescope reproduce secret-moe`."""
    from moescope.studies.distill.reproduce import reproduce_secret_moe

    folder = prepare(common.out, "reproduce-secret-moe", overwrite=common.overwrite)
    with progress() as report:
        result, students = reproduce_secret_moe(
            model,
            active=(32,),  # with as many shared, the source's headline size of 64 active neurons
            experts=4096,
            epochs=10,
            seed=common.seed,
            batch_tokens=common.batch_tokens,
            report=report,
            load_options=common.load_options(),
        )
    _finish(result, students, folder, common, tables=("published",))


def _finish(
    result: StudyResult, students: dict[str, Student], folder: Path, common: Common, tables: tuple[str, ...] = ()
) -> None:
    from moescope.studies.distill import save_student
    from moescope.study.names import slug

    finish(result, folder, common, tables=tables)
    for left in (folder / "students").glob("*.safetensors"):  # of an overwritten result
        left.unlink()
    for name, student in students.items():
        path = folder / "students" / f"{slug(name)}.safetensors"
        save_student(student, path, fingerprint=result.meta["fingerprint"], layer=result.meta["settings"]["layer"])


def read_texts(path: Path) -> list[str]:
    """The texts of a file, parted by blank lines.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    try:
        parts = [part.strip() for part in path.read_text(encoding="utf-8").split("\n\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--text: {path} cannot be read ({error}); give a UTF-8 text file") from error
    texts = [part for part in parts if part]
    if not texts:
        raise InputError(f"--text: {path} holds no text")
    return texts


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(text))
    except ValueError:
        raise InputError(f"--lr: {text!r} is not a list of numbers; write 0.001,0.003") from None
