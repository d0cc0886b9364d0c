"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from moescope.errors import InputError
from moescope.study.run import Progress, Run


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options that every command takes."""

    out: Annotated[
        Path | None, Parameter(name=("--out", "-o"), help="Folder for the result (default: moescope-out/COMMAND).")
    ] = None
    overwrite: Annotated[bool, Parameter(negative="", help="Replace a moescope result that stands in --out.")] = False
    seed: Annotated[int, Parameter(help="Seed of folds, permutations and random circuits.")] = 0
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON instead of a table.")] = False
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Parameter(help="Precision of the model's weights.")] = "fp32"
    device: Annotated[str | None, Parameter(help="cpu, cuda, cuda:1 … (default: cuda where there is one).")] = None
    device_map: Annotated[str | None, Parameter(help="Passed to transformers, e.g. auto.")] = None
    batch_tokens: Annotated[int, Parameter(help="Padded tokens in one batch.")] = 8192

    def run(self, progress: Progress) -> Run:
        """As verbs take it; the result is saved by the command."""
        return Run(seed=self.seed, batch_tokens=self.batch_tokens, progress=progress, **self.load_options())

    def load_options(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device, "device_map": self.device_map}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Search:
    """How circuits are sought."""

    site: Annotated[str, Parameter(help="resid, mlp_act, mlp_out, attn_out, mlp_in; with layers as resid:3 or resid:0-5.")] = (
        "resid"
    )
    position: Annotated[str, Parameter(help="final, mean, or a token index such as -2.")] = "final"
    k: Annotated[int, Parameter(help="Circuit size that the controls use.")] = 10
    ks: Annotated[str, Parameter(help="Circuit sizes of the sufficiency table.")] = "1,2,3,5,10,20,50"
    sigma: Annotated[Literal["pooled", "total", "negative"], Parameter(help="Denominator of the divergence.")] = "pooled"
    selection: Annotated[Literal["nested", "global"], Parameter(help="global is the published, optimistic protocol.")] = (
        "nested"
    )
    classifier: Annotated[Literal["lda", "logistic"], Parameter(help="What reads the circuit.")] = "lda"
    folds: Annotated[int, Parameter(help="Cross-validation folds.")] = 5
    permutations: Annotated[int, Parameter(help="Label permutations of the neuron ranking.")] = 1000
    label_permutations: Annotated[int, Parameter(help="Label permutations of the whole nested procedure.")] = 100
    random: Annotated[int, Parameter(help="Random circuits per control, and sets per ablation (at least 100 there).")] = 100
    twin: Annotated[bool, Parameter(help="Also study a randomly initialised model.")] = True
    limit: Annotated[int | None, Parameter(help="Use at most this many examples of each task.")] = None
    max_tokens: Annotated[int | None, Parameter(help="Cut longer texts, from the left.")] = None

    def settings(self, **changes: Any) -> Any:
        from moescope.studies.circuits import CircuitSettings

        chosen: dict[str, Any] = {
            "site": self.site,
            "position": position(self.position),
            "ks": integers("--ks", self.ks),
            "k": self.k,
            "sigma": self.sigma,
            "selection": self.selection,
            "classifier": self.classifier,
            "n_folds": self.folds,
            "n_permutations": self.permutations,
            "n_label_permutations": self.label_permutations,
            "n_random": self.random,
            "twin": self.twin,
        }
        return CircuitSettings(**(chosen | changes))


Tasks = Annotated[list[str], Parameter(name="--task", negative="", help="NAME=SOURCE; repeat for more. See `moescope tasks`.")]
COMMON, SEARCH = Common(), Search()


def integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a list of whole numbers; write 1,2,5,10") from None


def position(text: str) -> str | int:
    if text in ("final", "mean"):
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--position: {text!r} is none of final, mean, or a token index such as -2") from None


def load_tasks(specifications: list[str], limit: int | None, seed: int) -> list[Any]:
    from moescope.tasks import load_task

    return [load_task(text, limit=limit, seed=seed) for text in specifications]
