"""How texts become tokens."""

from __future__ import annotations

from tests.mutants.fault import faults

_READING = "models/reading.py"

FAULTS = faults(
    "reading",
    "reading",
    (
        "opened-twice",
        "special tokens",
        "a text that begins with a written <bos> gets a second one",
        _READING,
        "    while before and not mask",
        "    while False and not mask",
        ("test_an_opening_in_the_text_is_not_put_again",),
    ),
    (
        "end-is-final",
        "special tokens",
        "the end that a tokenizer appends is the final token of every text",
        _READING,
        "    if after and not closed:",
        "    if False and not closed:",
        ("test_what_follows_a_text_follows_its_own_last_token",),
    ),
    (
        "template-is-text",
        "chat template",
        "a mean over tokens counts those of the template",
        _READING,
        "mask[own[0] : own[-1] + 1] = False",
        "mask[:] = False",
        ("test_a_mean_over_a_chat_is_over_its_text",),
    ),
    (
        "text-is-a-turn",
        "running text",
        "running text on which a loss is measured is put into the chat template",
        "intervene/text_loss.py",
        "[t.text for t in texts], chat=False)",
        "[t.text for t in texts])",
        ("test_running_text_is_no_chat",),
    ),
    (
        "window-unopened",
        "running text",
        "windows of running text begin without what the tokenizer puts before a text",
        "capture/windows.py",
        "np.tile(first, (count, 1))",
        "np.tile(first[:0], (count, 1))",
        ("test_a_window_begins_as_a_text_does",),
    ),
)
