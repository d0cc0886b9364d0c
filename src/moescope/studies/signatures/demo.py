"""The signatures study as `moescope demo` runs it: the embedded model, all shipped prompts, fewer random draws."""

from __future__ import annotations

from typing import Any

from moescope.models import load
from moescope.studies.signatures.reproduce import EMBEDDED
from moescope.studies.signatures.settings import SignatureSettings
from moescope.studies.signatures.study import DEFAULT_PROMPTS, Report, signatures
from moescope.study.result import StudyResult


def run_demo_part(
    report: Report | None = None, *, seed: int = 0, batch_tokens: int = 8192, load_options: dict[str, Any] | None = None
) -> StudyResult:
    """Signatures of the embedded mixture-of-experts model on the 480 shipped prompts, in under a minute on two cores."""
    settings = SignatureSettings(n_label_permutations=20, n_null=20, seed=seed, batch_tokens=batch_tokens)
    loaded = load(EMBEDDED, head=True, **(load_options or {}))
    return signatures(loaded, DEFAULT_PROMPTS, settings=settings, report=report)
