"""Sentences made here, whose tone (of an adjective) and certainty (of an opening) are set one by one.

Every block has openings, adjectives and things of its own, and is a group: held-out texts share none of the words that carry a
label, so that these cannot be learnt by heart.
"""

from __future__ import annotations

_SURE = (
    "I am certain that", "There is no doubt that", "It is clear that", "Everyone agrees that", "Without question,",
    "I can confirm that", "It is a fact that", "Of course", "I know for sure that", "Undeniably,",
    "It has been proven that", "As we all know,", "I guarantee that", "Definitely,", "I checked it twice:",
    "Beyond dispute,", "I saw with my own eyes that", "It is settled that", "Make no mistake:", "Plainly,",
)  # fmt: skip
_UNSURE = (
    "I am not sure, but maybe", "Perhaps", "It may be that", "Some people say that", "Possibly,",
    "I would guess that", "It is rumoured that", "It could be that", "I vaguely think that", "Supposedly,",
    "It is hard to tell whether", "As far as I can tell,", "I wonder whether", "Conceivably,", "I have not "
    "checked, but apparently",
    "Opinions differ on whether", "I half remember that", "It remains open whether", "Do not quote me:", "Allegedly,",
)  # fmt: skip
_GOOD = (
    "wonderful", "delightful", "excellent", "superb", "charming", "brilliant", "lovely", "splendid", "terrific", "magnificent",
    "pleasant", "enjoyable", "impressive", "outstanding", "marvellous", "fantastic", "graceful", "refreshing", "admirable",
    "beautiful", "great", "perfect", "fabulous", "stunning", "gorgeous", "flawless", "exquisite", "thrilling", "satisfying",
    "remarkable", "elegant", "inspiring", "joyful", "glorious", "amazing", "adorable", "rewarding", "first-rate", "divine",
    "heavenly",
)  # fmt: skip
_BAD = (
    "terrible", "awful", "dreadful", "horrible", "disgusting", "miserable", "poor", "dismal", "lousy", "appalling",
    "unpleasant", "boring", "disappointing", "mediocre", "atrocious", "pathetic", "clumsy", "tedious", "shameful",
    "ugly", "bad", "flawed", "abysmal", "hideous", "nasty", "broken", "revolting", "dull", "frustrating",
    "worthless", "shabby", "depressing", "sad", "wretched", "ghastly", "irritating", "useless", "second-rate", "rotten",
    "hellish",
)  # fmt: skip
_THINGS = (
    "meal", "film", "hotel", "concert", "book", "garden", "service", "lecture", "coffee", "journey", "museum", "party",
    "phone", "speech", "painting", "weather", "bakery", "game", "song", "room", "play", "beach", "chair", "story", "soup",
    "market", "camera", "dance", "bridge", "poem", "wine", "school", "parade", "lamp", "castle", "salad", "theatre", "jacket",
    "festival", "bicycle",
)  # fmt: skip


def tone_certainty() -> list[dict[str, str]]:
    """320 rows with text, tone (bad, good), certainty (sure, unsure) and group, 16 in each of 20 groups."""
    rows = []
    for block, openings in enumerate(zip(_SURE, _UNSURE, strict=True)):
        own = slice(2 * block, 2 * block + 2)
        for certainty, opening in zip(("sure", "unsure"), openings, strict=True):
            for tone, adjectives in (("good", _GOOD[own]), ("bad", _BAD[own])):
                for thing in _THINGS[own]:
                    for adjective in adjectives:
                        text = f"{opening} the {thing} was {adjective}."
                        rows.append({"text": text, "tone": tone, "certainty": certainty, "group": str(block)})
    return rows
