"""There is no telemetry: what runs on what is there asks nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# A process of its own: libraries read their settings, and might say hello, when they are imported.
CALL = """
import socket, sys
def refuse(*given, **_):
    print("asked for", given[1:] or given, file=sys.stderr)
    sys.stderr.flush()
    import os
    os._exit(99)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from moescope.cli import main
main(["models"])
main(["tasks"])
main(["trace", "moe-tiny", "--prompts", "routing-80", "--new-tokens", "1", "--out", "trace", "--quiet"])
main(["signatures", "--trace", "trace", "--permutations", "199", "--label-permutations", "0", "--nulls", "2", "--quiet"])
"""


def test_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    left_out = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    given = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run([sys.executable, "-c", CALL], cwd=tmp_path, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "moescope-out" / "signatures-trace" / "results.json").is_file()
