"""What a stored routing trace says about itself: the contents of its ``manifest.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from moescope.capture.manifest import Shard, read_manifest, write_manifest
from moescope.routing.trace import TracedSequence
from moescope.study.settings import at_least

FORMAT = "moescope-routing-2"
COLUMNS = ("ids", "weights", "sequence", "position", "generated", "tokens", "scores")


@dataclass(frozen=True)
class TraceManifest:
    """The contents of ``manifest.json``. ``unfinished.json`` is the same while shards are being added."""

    layers: Annotated[tuple[int, ...], at_least(0)] = ()
    n_experts: Annotated[tuple[int, ...], at_least(1)] = ()
    columns: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """how the prompts were run, where the store was made from prompts: must be the same on resuming"""
    prompts_sha256: str = ""
    """chained over the shards: digest of the prompts' token ids, where the store was made from prompts"""
    shards: tuple[Shard, ...] = ()
    sequences: tuple[TracedSequence, ...] = ()
    format: str = FORMAT

    def __post_init__(self) -> None:
        if sum(shard.texts for shard in self.shards) != len(self.sequences):
            raise ValueError(f"its shards do not hold its {len(self.sequences)} sequences")

    @property
    def fingerprint(self) -> str:
        return str(self.meta.get("fingerprint", ""))

    def write(self, path: Path) -> None:
        write_manifest(self, path)

    @classmethod
    def read(cls, path: Path) -> TraceManifest:
        """Read a manifest.

        Raises:
            InputError: it is not there, not JSON, or of another format or version.
        """
        refusal = "not a routing trace of this version"
        return read_manifest(cls, path, refusal, "trace")
