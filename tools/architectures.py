"""Writes `docs/architectures.md`: which types of the installed transformers can be read, and why the others cannot.

python tools/architectures.py       # some minutes on one core
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import transformers

from moescope.models.architectures import Architecture, architectures

PAGE = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"
ABOUT = """# Architectures

Which model types can be read. Written by `python tools/architectures.py` (transformers {version}), which builds every type that
an automatic class for bodies, causal, masked or image-and-text language models makes, four layers deep with random weights, and
holds each site against what the model computes (`moescope coverage --sites` does the same with the release that is installed):

- `embed` is `hidden_states[0]`; `resid:L` is `hidden_states[L + 1]`, but for the last entry: `resid` is before the final norm,
  most models report it after. `resid:L` is also what layer L + 1 is given.
- What a layer gives, `resid:L`, is made of what it is given (x), `attn_out` and `mlp_out` as the table says; *token by token*
  where no such sum is found, but nothing passes between tokens except by `attn_out` and `mlp_out`.
- `mlp_out` at a token depends on `mlp_in` at that token alone and on nothing but `mlp_act` where there is one, which is as wide
  as the config's inner width; what `mlp_in` does to the stream it does by `mlp_out`.
- Each site replaced by itself changes nothing; another `attn_out` or `mlp_out` changes the last layer's stream.

*One by one*: a text's activations depend on what shares its batch, with padding on that side, or even without (*none*). Such a
model is noticed when a study loads it, by a hundred forward tokens, and is run on one text at a time; the result says so.
"""


def row(found: Architecture) -> str:
    """The line of a type that is read."""
    return f"| `{found.model_type}` | {found.sites} | {found.stream} | {found.singly} |"


def refusal(found: Architecture) -> str:
    """Why a type is refused, without its name."""
    return found.reason.removeprefix(f"model type {found.model_type!r} ")


def page(found: Sequence[Architecture]) -> str:
    """The whole page."""
    read = [one for one in found if one.read]
    reasons: dict[str, list[str]] = {}
    for one in found:
        if not one.read:
            reasons.setdefault(refusal(one), []).append(f"`{one.model_type}`")
    lines = [ABOUT.format(version=transformers.__version__), f"## Read: {len(read)} of {len(found)} types", ""]
    lines += ["| type | sites of the tiny model | a layer gives | one by one |", "|---|---|---|---|", *map(row, read)]
    lines += ["", "## Refused, and why"]
    for reason, types in sorted(reasons.items(), key=lambda item: (item[0].startswith("not tried"), -len(item[1]), item[0])):
        lines += ["", f"**{reason}**: {', '.join(types)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    PAGE.write_text(
        page(architectures(progress=lambda done, total: print(f"\r{done}/{total}", end="", file=sys.stderr))), "utf-8"
    )
