"""What schemathesis makes of the API's own description: every answer is one that the description announces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moescope.server import Limits, Served
from tests.served_studies import save_studies, serve_studies
from tests.test_serve_hostile import serving

# more than is allowed is 413, which is a refusal too; a text of one token cannot be told from one of two by its form, nor an
# expert that is there from one that is not, nor two fields that are too long together
CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 404, 405, 411, 413, 421, 422]

[[operations]]
include-path = "/v1/route"
[operations.checks.positive_data_acceptance]
expected-statuses = [200, 400]

[[operations]]
include-path = "/v1/stream"
[operations.checks.positive_data_acceptance]
expected-statuses = [200, 400]

[[operations]]
include-path = "/v1/classify/wandering"
[operations.checks.positive_data_acceptance]
expected-statuses = [200, 413]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve_studies(save_studies(tmp_path_factory.mktemp("studies")), cards=True)


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "correct-horse-battery"])
def test_schemathesis_finds_nothing(served: Served, tmp_path: Path, token: str | None) -> None:
    pytest.importorskip("schemathesis")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with serving(served, Limits(texts=8, characters=120, new_tokens=16), token=token) as port:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", "all"]
        command += ["--max-examples", "100", "--phases", "examples,coverage,fuzzing", "--seed", "0", "--continue-on-failure"]
        command += ["--header", f"Authorization: Bearer {token}"] if token else []
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "Tested: 7" in done.stdout
