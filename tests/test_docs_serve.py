"""The table of the server's page is what was measured."""

from __future__ import annotations

import pytest

from tools.serve_load import PAGE, RESULT, page


@pytest.mark.skipif(not RESULT.exists(), reason="no load was measured")
def test_the_table_is_what_the_result_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/serve_load.py"
