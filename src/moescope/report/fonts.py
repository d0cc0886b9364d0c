"""The font of all figures, and names made ready to be drawn in it."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from moescope.report.fit import cut

FONT = "DejaVu Sans"
# Fonts with the characters of Chinese, Japanese and Korean, in the order in which they are asked for: free ones, then systems'.
_WIDER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Unifont", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo",
    "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip


@functools.cache
def further_fonts() -> tuple[str, ...]:
    """The fonts of this machine that have what :data:`FONT` lacks."""
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _WIDER_FONTS if name in installed)


@functools.cache
def drawable() -> frozenset[int]:
    """The code points that the fonts of this machine can draw."""
    found = (findfont(FontProperties(family=name), fallback_to_default=False) for name in (FONT, *further_fonts()))
    return frozenset(code for path in found for code in get_font(path).get_charmap())


def plain(text: object) -> str:
    """``text`` in one line, ready for matplotlib.

    A character that no font of this machine can draw is written as its escape, ``\\u4e2d``, since an empty box would hide it. A
    leading underscore would hide the text from legends, so that a word joiner, which has no width, goes before it.
    """
    line = " ".join(str(text).split())
    if not line.isascii() or not line.isprintable():
        line = "".join(c if ord(c) in drawable() else c.encode("unicode_escape").decode() for c in line)
    return f"\u2060{line}" if line.startswith("_") else line


def shorten(text: object, length: int) -> str:
    """:func:`plain` text in at most ``length`` characters; the middle goes, since names often differ at the end."""
    return cut(plain(text), length)


def full_names(names: Iterable[object], length: int) -> str:
    """A caption's sentence with every name in order, where one is longer than ``length`` and so may be cut, or has a character
    that no font here can draw (a browser's may); else nothing."""
    texts = [" ".join(str(n).split()) for n in names]
    unlike = any(len(t) > length or not (t.isascii() or drawable().issuperset(map(ord, t))) for t in texts)
    return f" Names in full, in order: {'; '.join(texts)}." if unlike else ""
