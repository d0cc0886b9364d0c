"""What counts as a difference between two recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moescope.study.settings import Judged, between


@dataclass(frozen=True, kw_only=True)
class AgreementSettings(Judged):
    """What counts."""

    margin: Annotated[float, between(0, 1)] = 0.01
    """Smallest difference in the share of a token's experts that counts."""
