"""The table of claims: published beside measured, its interval, its control, its p and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from moescope.report.format import beside, numbers, verdict_style
from moescope.types import Claim

_HEADS = ("claim", "published", "measured", "95 %", "control", "p (Holm)")
_WIDEST = 16  # of a number column; longer text is wrapped
_SHORTEST = 6  # to which a number column may shrink on a narrow terminal
_NARROWEST = 32  # that a claim's name may be beside its numbers
_INDENT = _GAP = 2


@dataclass(frozen=True)
class ClaimsTable:
    """A rich renderable: under a claim's numbers, over the whole width, stands its verdict and the reason for it.

    Where the numbers leave a claim's name too little room beside them, as on 80 columns, the name has its own line.
    Colour only repeats what the words already say.
    """

    claims: tuple[Claim, ...]
    title: str | None = None
    words: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [numbers(claim) for claim in self.claims]
        widths = [min(_WIDEST, max([len(h), *(len(c[i]) for c in cells)])) for i, h in enumerate(_HEADS[1:])]
        longest = max([len(_HEADS[0]), *(len(c.statement) for c in self.claims)])
        room = options.max_width - sum(widths) - _GAP * len(widths)
        stacked = room < min(longest, _NARROWEST)
        first = _INDENT if stacked else min(longest, room)
        while stacked and first + sum(widths) + _GAP * len(widths) > options.max_width and max(widths) > _SHORTEST:
            widths[widths.index(max(widths))] -= 1
        whole = min(options.max_width, max(first + sum(widths) + _GAP * len(widths), 60))
        sized = options.update(width=whole)
        if self.title:
            yield Text(self.title, style="bold")
        yield from console.render(_row("" if stacked else _HEADS[0], _HEADS[1:], first, widths, style="dim"), sized)
        yield from console.render(Rule(style="dim"), sized)
        for claim, row in zip(self.claims, cells, strict=True):
            if stacked:
                yield from console.render(Text(claim.statement, style="bold"), sized)
            yield from console.render(_row("" if stacked else claim.statement, row, first, widths, strong=1), sized)
            style = verdict_style(claim)
            line = Text(f"{style.mark} {claim.verdict}", style="" if style.rich == "default" else style.rich)
            if self.words and claim.words:
                said = beside(claim)
                line.append(f" – {claim.words}{f' [{said}]' if said else ''}", style="dim")
            yield from console.render(Padding(line, (0, 0, 0, _INDENT)), sized)


def _row(
    name: str, numbers: Iterable[str], first: int, widths: list[int], *, style: str = "", strong: int | None = None
) -> Table:
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(width=first, overflow="fold")
    for width in widths:
        table.add_column(width=width, justify="right", overflow="fold")
    table.add_row(Text(name), *(Text(n, style="bold" if i == strong else "") for i, n in enumerate(numbers)), style=style)
    return table
