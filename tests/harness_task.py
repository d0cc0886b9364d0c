"""A task of lm-evaluation-harness over a local file, offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

NAME = "tiny_pairs"


def write_task(folder: Path, pairs: Sequence[tuple[str, str, str]]) -> Path:
    """The task :data:`NAME` of (question, right, wrong), and the folder that holds it."""
    data = folder / "tasks" / "pairs.jsonl"
    data.parent.mkdir()
    data.write_text("\n".join(json.dumps({"q": q, "choices": [a, b], "gold": 0}) for q, a, b in pairs))
    (data.parent / "pairs.yaml").write_text(
        f"task: {NAME}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{gold}}'\nmetric_list:\n  - metric: acc\n"
    )
    return data.parent
