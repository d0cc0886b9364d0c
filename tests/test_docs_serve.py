"""The table of the server's page is what was measured."""

from __future__ import annotations

from tools.serve_load import PAGE, page


def test_the_table_is_what_the_result_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/serve_load.py"
