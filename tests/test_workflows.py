"""What runs on others' machines in our name is pinned, and may do no more than it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
WORKFLOWS = {path.stem: path for path in sorted(FOLDER.glob("*.yml"))}
WRITES = {("release", "sign"), ("release", "publish"), ("release", "page")}
"""jobs that may write anything: a signature, a release, its page"""


def jobs(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(WORKFLOWS[name].read_text())["jobs"])


@pytest.mark.parametrize("name", list(WORKFLOWS))
def test_actions_are_pinned_by_hash(name: str) -> None:
    used = [step["uses"] for job in jobs(name).values() for step in job["steps"] if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action


@pytest.mark.parametrize("name", list(WORKFLOWS))
def test_only_a_release_writes_and_no_secret_is_stored(name: str) -> None:
    text = WORKFLOWS[name].read_text()
    assert "secrets." not in text
    assert "pull_request_target" not in text
    allowed = yaml.safe_load(text)["permissions"]
    assert set(allowed.values()) <= {"read"}
    for job, what in jobs(name).items():
        writes = {key for key, value in what.get("permissions", {}).items() if value != "read"}
        assert bool(writes) == ((name, job) in WRITES), job
        for step in what["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
