"""Tasks through EleutherAI's lm-evaluation-harness, where it is installed (``pip install 'moescope[eval]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moescope.errors import InputError


def language_model(model: Any, tokenizer: Any, batch_size: int = 8) -> Any:
    """A causal language model in memory as the harness takes it.

    Raises:
        InputError: the harness is not installed.
    """
    return _harness()[1](pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def run_tasks(lm: Any, tasks: Sequence[str], *, include: str | Path | None, limit: int | None, seed: int) -> dict[str, Any]:
    """What the harness gives for one of its language models, each example's own scores (``samples``) with it.

    Raises:
        InputError: the harness is not installed, or does not know a task.
    """
    manager = check_tasks(tasks, include)
    found: dict[str, Any] = _harness()[0].simple_evaluate(
        model=lm,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return found


def check_tasks(tasks: Sequence[str], include: str | Path | None) -> Any:
    """The harness's own manager of tasks, which knows all of these.

    Raises:
        InputError: the harness is not installed, or does not know a task.
    """
    manager = _harness()[0].tasks.TaskManager(include_path=None if include is None else str(include))
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            raise InputError(
                f"lm-evaluation-harness has no task {task!r}; name one of its own, or give its folder as eval_include",
                "eval_task",
            )
    return manager


def _harness() -> tuple[Any, Any]:
    try:
        import lm_eval
        import lm_eval.tasks
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise InputError(
            f"needs lm-evaluation-harness ({error}): install it with pip install 'moescope[eval]'", "eval_task"
        ) from error
    return lm_eval, HFLM
