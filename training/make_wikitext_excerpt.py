"""Write the WikiText-2 excerpt that the package ships: whole articles from the start of the test set, detokenised.

    python -m training.make_wikitext_excerpt

The embedded model never trains on the test set (see `training/corpus.py`), so its loss there is loss on unseen text.
"""

from __future__ import annotations

import lzma
import os
from pathlib import Path

from training.corpus import wikitext_articles

TARGET = Path(__file__).parents[1] / "src/moescope/tasks/data/wikitext2_test.txt.xz"
MAX_BYTES = 300_000


def excerpt() -> str:
    """Articles from the start, as many as fit MAX_BYTES of UTF-8, separated by an empty line."""
    text = ""
    for article in wikitext_articles("wikitext-2.test.txt"):
        longer = f"{text}\n\n{article}" if text else article
        if len(longer.encode()) + 1 > MAX_BYTES:
            break
        text = longer
    return text + "\n"


def main() -> None:
    data = excerpt().encode()
    temporary = TARGET.with_name(TARGET.name + ".tmp")
    temporary.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    os.replace(temporary, TARGET)
    print(f"{TARGET}: {len(data)} bytes of text, {TARGET.stat().st_size} compressed")


if __name__ == "__main__":
    main()
