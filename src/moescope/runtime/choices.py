"""What can be chosen of classifiers and routers, apart from what does it: the command line is made from these words."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["circuit", "linear", "pooled"]
"""What a head reads at its depth: ``circuit``, K residual coordinates of the final token from any layer so far, chosen anew
for each depth; ``linear``, the final token's residual stream; ``pooled``, the mean of it over the text's tokens."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Loss = Literal["accuracy", "disagreement"]
"""What the risk is of. ``accuracy``: the share of rows that the full-depth head gets right and the exit gets wrong, an upper
bound of the accuracy lost. ``disagreement``: the share of rows on which the two differ, right or wrong."""

Method = Literal["ltt", "crc"]
"""``ltt``: Learn-then-Test, risk within bounds with probability 1 - delta; ``crc``: conformal risk control, on average."""

Source = Literal["residual", "routing"]
"""What is averaged over a prompt's tokens: the residual stream after one layer, or, in a mixture of experts, the router's
softmax in that layer and all before it (a soft routing signature)."""
