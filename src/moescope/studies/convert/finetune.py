"""Fine-tuning a converted model against the original, before it is cut into experts.

LoRA adapters (Hu et al. 2021, arXiv:2106.09685) sit on the projections of every MLP, the routers are trained with them, and
all is merged: nothing of it is left in the checkpoint. Adapters on attention did not measure better (docs/convert.md).

peft can adapt a checkpoint's own stacks of experts too (``target_parameters``). On the dense form an update of rank r is
shared by all experts of a layer, each of which takes the rows that are its neurons', and no stack of small matrices is made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moescope.errors import InputError
from moescope.intervene.held_out import Windows
from moescope.models import LoadedModel
from moescope.studies.convert.distillation import distance
from moescope.studies.convert.settings import ConvertSettings
from moescope.studies.convert.student import Fixed, RoutedMLP, measure_spread, route, twin_of, unroute
from moescope.studies.convert.target import Target
from moescope.study.stages import Stages

RATES = (3e-4, 1e-3)  # tried, where none is given
WINDOWS = 4  # sequences of one step
_TRY = 0.1  # of the steps, for each rate
_WARM = 0.05  # of the steps
_CHECKS = 10  # looks at the validation text
_CLIP = 1.0  # norm of the gradient


@dataclass(frozen=True, eq=False)
class Tuned:
    """What came of it.

    ``module`` is the dense form with its weights tuned and merged, None where validation did not improve; ``choices`` hold
    the routers trained with it. ``before`` and ``after`` are KL(original ‖ student) in nats per token on validation text.
    ``history`` holds [step, train, validation] for each look at the validation text, ``train`` the mean loss since the last.
    """

    module: Any | None
    choices: Sequence[nn.Module]
    rate: float
    before: float
    after: float
    best_step: int
    history: list[dict[str, float]]


class _Diverged(Exception):
    """The loss or the validation is no finite number; carries the step."""


def finetune(
    model: LoadedModel,
    target: Target,
    choices: Callable[[], Sequence[nn.Module]],
    training: Windows,
    validation: Windows,
    settings: ConvertSettings,
    seed: int,
    report: Callable[[int, int], None] | None = None,
    stages: Stages | None = None,
    name: str = "fine-tuning",
    start: Any | None = None,
) -> Tuned:
    """Train for ``settings.finetune`` steps; the state that validates best is kept, the untuned one included.

    Args:
        choices: makes the choice of neurons of every layer (:class:`TopK`, or ``Fixed``), anew
            for every rate that is tried.
        training, validation: windows of calibration text, apart from each other.
        stages: keeps where each training stands, under ``name``, at every look at the validation text.
        start: the model that is trained, if its weights are others than the original's already.

    Raises:
        InputError: peft is not installed, or the loss is no finite number at the rate given, or at every rate tried.
    """
    steps = settings.finetune or 0
    rates = RATES if settings.finetune_lr is None else (settings.finetune_lr,)
    tried = max(1, round(_TRY * steps)) if len(rates) > 1 else 0
    total = tried * len(rates) + steps

    def run(rate: float, length: int, before: int) -> _Run:
        made = _Run(model, target, choices(), rate, settings, seed, start)
        told = partial(_told, report, before, total)
        made.train(training, validation, length, told, stages or Stages(None, None), f"{name} at {rate:g}, {length} steps")
        return made

    outcomes: dict[float, float] = {}
    try:
        for number, rate in enumerate(rates if tried else ()):
            try:
                outcomes[rate] = run(rate, tried, number * tried).best
            except _Diverged:
                outcomes[rate] = math.inf
        best = min(outcomes, key=lambda rate: outcomes[rate]) if outcomes else rates[0]
        return run(best, steps, total - steps).result(validation)
    except _Diverged as error:
        raise InputError(
            f"the loss is no finite number at step {error} with a learning rate of {best:g}; try finetune_lr={best / 10:g}",
            "finetune",
        ) from error


def _told(report: Callable[[int, int], None] | None, before: int, total: int, step: int) -> None:
    if report is not None:
        report(before + step, total)


def untouched(model: LoadedModel, target: Target, validation: Windows, settings: ConvertSettings, seed: int) -> float:
    """Validation KL of the original with adapters on it and every neuron working, before a step."""
    choices = [Fixed(torch.ones(model.config.intermediate_size)) for _ in range(model.n_layers)]
    return _Run(model, target, choices, RATES[0], settings, seed).validate(validation)


class _Run:
    """One training from the untuned state at one rate."""

    def __init__(
        self,
        model: LoadedModel,
        target: Target,
        choices: Sequence[nn.Module],
        rate: float,
        settings: ConvertSettings,
        seed: int,
        start: Any | None = None,
    ) -> None:
        self.teacher: Any = model.module
        self.device = model.device
        self.choices = choices
        self.rate = rate
        self.seed = seed
        twin = twin_of(model.module if start is None else start)
        route(twin, target, choices)
        self.student = adapted(twin, settings.finetune_rank, seed)
        for choice in choices:
            for name, parameter in choice.named_parameters():
                parameter.requires_grad_(name != "bias" or target.has_shared)  # FlexOlmo has no place for a bias
        self.trained = [p for p in self.student.parameters() if p.requires_grad]

    @torch.enable_grad()
    def train(
        self, training: Windows, validation: Windows, steps: int, report: Callable[[int], None], stages: Stages, name: str
    ) -> None:
        """Leaves the student in the state that validated best."""
        optimizer = torch.optim.AdamW(self.trained, lr=self.rate, weight_decay=0.0)
        draw = torch.Generator().manual_seed(self.seed)
        looks = {round(steps * i / _CHECKS) for i in range(1, _CHECKS + 1)}
        order: list[int] = []
        losses: list[float] = []
        done, before = 0, stages.kept(name)
        if before is None:
            self.before = self.best = self.validate(validation)
            self.best_step, kept = 0, self._state()
            self.history = [{"step": 0, "train": math.nan, "validation": self.before}]
        else:
            done, weights, kept, moments, order, drawn, said = before
            self.before, self.best, self.best_step, self.history = said
            self._put(weights)
            optimizer.load_state_dict(moments)
            draw.set_state(drawn)
        for step in range(done + 1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = self.rate * _schedule(step, steps)
            while len(order) < WINDOWS:
                order += torch.randperm(len(training.ids), generator=draw).tolist()
            rows, order = order[:WINDOWS], order[WINDOWS:]
            loss = self._loss(training.ids[rows].to(self.device))
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.trained, _CLIP)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise _Diverged(step)
            optimizer.step()
            losses.append(loss.item())
            if step in looks:
                found = self.validate(validation)
                if not math.isfinite(found):
                    raise _Diverged(step)
                self.history.append({"step": step, "train": sum(losses) / len(losses), "validation": found})
                losses = []
                now = self._state()
                if found < self.best:
                    self.best, self.best_step, kept = found, step, now
                said = (self.before, self.best, self.best_step, self.history)
                stages.keep(name, (step, now, kept, optimizer.state_dict(), order, draw.get_state(), said))
            report(step)
        self._put(kept)

    def result(self, validation: Windows) -> Tuned:
        """Adapters added to the weights, out of place, for the original holds the same memory; the MLPs as they were."""
        module: Any = None
        if self.best_step:
            measure_spread(self.student, self.choices, validation, self.device)
            module = (
                self.student.merge_and_unload(safe_merge=True) if hasattr(self.student, "merge_and_unload") else self.student
            )
            unroute(module)
            module.requires_grad_(False)
        return Tuned(module, self.choices, self.rate, self.before, self.best, self.best_step, self.history)

    def _loss(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(input_ids=ids, use_cache=False, output_hidden_states=True)
        found = self.student(input_ids=ids, use_cache=False, output_hidden_states=True)
        # the first hidden state is the embedding, which is the same
        parts = distance(found.logits, wanted.logits, found.hidden_states[1:], wanted.hidden_states[1:])
        return parts.logits + parts.hidden

    @torch.no_grad()
    def validate(self, windows: Windows) -> float:
        """KL(original ‖ student), nats per token."""
        total = 0.0
        for ids in windows.ids.split(WINDOWS):
            ids = ids.to(self.device)
            wanted = self.teacher(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            found = self.student(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            total += float((wanted.exp() * (wanted - found)).sum())
        return total / windows.tokens

    @torch.no_grad()
    def _put(self, state: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.trained, state, strict=True):
            parameter.copy_(value)

    def _state(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.trained]


def adapted(twin: Any, rank: int | str, seed: int) -> Any:
    """``twin`` with adapters on its MLPs, which alone are trained, or with trained copies of the MLPs' own weights."""
    linear = {f"{a}.{b}": m for a, mlp in _mlps(twin) for b, m in mlp.named_modules() if isinstance(m, nn.Linear)}
    if rank == "full":
        for module in linear.values():
            module.weight = nn.Parameter(module.weight.detach().clone())
        return twin.eval()
    peft = require_peft()
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(linear))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for something by its older name
        torch.manual_seed(seed)
        return peft.get_peft_model(twin, config).eval()


def _mlps(twin: Any) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in twin.named_modules() if isinstance(module, RoutedMLP)]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to nought."""
    warm = max(1, round(_WARM * steps))
    return step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm + 1)))


def require_peft() -> Any:
    """The module peft, which adapters come from.

    Raises:
        InputError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError(f"needs peft ({error}): install it with pip install 'moescope[finetune]'", "finetune") from error
    return peft
