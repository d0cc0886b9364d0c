"""The command of the routing-signatures study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from moescope.cli.options import COMMON, Common, Search
from moescope.cli.output import finish, prepare, progress
from moescope.errors import InputError

Prompts = Annotated[
    str | None,
    Parameter(help="routing-480 (default), routing-80, or a JSONL, CSV or Parquet file: text, category, id, topic, template."),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Compare:
    """How signatures are compared."""

    tokens: Annotated[int, Parameter(help="Tokens generated after each prompt (32 as published); 0 reads prompts alone.")] = 32
    quantity: Annotated[Literal["frequency", "weight"], Parameter(help="Count choices, or add up their weights.")] = "frequency"
    folds: Annotated[int, Parameter(help="Cross-validation folds.")] = 5
    permutations: Annotated[int, Parameter(help="Label permutations of similarities, layers and experts.")] = 1000
    label_permutations: Annotated[int, Parameter(help="Label permutations of the whole cross-validation.")] = 100
    nulls: Annotated[int, Parameter(help="Random routings per load-balance baseline.")] = 50
    cards: Annotated[int, Parameter(help="Expert cards per category.")] = 2
    expert: Annotated[list[str] | None, Parameter(negative="", help="A further expert's card, as LAYER:EXPERT; repeat.")] = None
    dense_experts: Annotated[int, Parameter(help="Read a dense model as so many groups of neurons per layer.")] = 0
    twin: Annotated[bool, Parameter(help="Also trace a randomly initialised model.")] = True
    limit: Annotated[int | None, Parameter(help="Use at most this many prompts.")] = None
    max_tokens: Annotated[int | None, Parameter(help="Cut longer prompts, from the left.")] = None

    def settings(self, common: Common, **changes: Any) -> Any:
        from moescope.studies.signatures.settings import SignatureSettings

        chosen: dict[str, Any] = {
            "new_tokens": self.tokens,
            "quantity": self.quantity,
            "n_folds": self.folds,
            "n_permutations": self.permutations,
            "n_label_permutations": self.label_permutations,
            "n_null": self.nulls,
            "cards": self.cards,
            "experts": tuple(_expert(text) for text in self.expert or ()),
            "dense_experts": self.dense_experts,
            "twin": self.twin,
            "max_tokens": self.max_tokens,
            "batch_tokens": common.batch_tokens,
            "seed": common.seed,
        }
        return SignatureSettings(**(chosen | changes))

    def prompts(self, source: str | None, common: Common) -> Any:
        from moescope.studies.signatures.study import DEFAULT_PROMPTS
        from moescope.tasks import load_prompts

        return load_prompts(source or DEFAULT_PROMPTS, limit=self.limit, seed=common.seed)


COMPARE = Compare()


def signatures(
    model: str | None = None,
    /,
    *,
    prompts: Prompts = None,
    trace: Annotated[Path | None, Parameter(help="A recorded trace instead of running MODEL.")] = None,
    compare: Compare = COMPARE,
    common: Common = COMMON,
) -> None:
    """Does a mixture-of-experts model route by task? Against chance, length, words and token identity.

    MODEL is a Hub id, a local folder or an embedded name (`moescope models`); with --trace its tokenizer reads the tokens.
    """
    from moescope.models import load
    from moescope.studies.signatures.study import signatures as study

    folder = prepare(common.out, "signatures", overwrite=common.overwrite)
    settings = compare.settings(common)
    if model is None and trace is None:
        raise InputError("MODEL: name a model to run (`moescope models` lists the embedded ones), or give --trace")
    recorded = None
    if trace is not None:
        from moescope.routing.store import load_trace

        recorded = load_trace(trace)
    labelled = compare.prompts(prompts, common) if prompts or recorded is None else None
    with progress() as report:
        loaded = (
            None if model is None else load(model, head=recorded is None and settings.new_tokens > 0, **common.load_options())
        )
        result = study(loaded, labelled, trace=recorded, settings=settings, report=report)
    finish(result, folder, common)


def reproduce(model: str | None, prompts: str | None, task: list[str] | None, search: Search, common: Common) -> None:
    """`moescope reproduce signatures`: of the options of a search, those that this study has too."""
    from moescope.studies.signatures.reproduce import PROMPTS, reproduce_signatures
    from moescope.studies.signatures.settings import SignatureSettings
    from moescope.tasks import load_prompts

    if task:
        raise InputError("--task: the signatures study has no tasks; name its prompts with --prompts")
    folder = prepare(common.out, "reproduce-signatures", overwrite=common.overwrite)
    settings = SignatureSettings(
        n_folds=search.folds,
        n_permutations=search.permutations,
        n_label_permutations=search.label_permutations,
        twin=search.twin,
        max_tokens=search.max_tokens,
        batch_tokens=common.batch_tokens,
        seed=common.seed,
    )
    source: Any = prompts or PROMPTS
    if search.limit is not None:
        source = load_prompts(source, limit=search.limit, seed=common.seed)
    with progress() as report:
        result = reproduce_signatures(model, source, settings=settings, report=report, load_options=common.load_options())
    finish(result, folder, common, tables=("published",))


def _expert(text: str) -> tuple[int, int]:
    layer, colon, expert = text.partition(":")
    if not colon or not layer.isdecimal() or not expert.isdecimal():
        raise InputError(f"--expert: {text!r} is not LAYER:EXPERT, such as 3:11")
    return int(layer), int(expert)
