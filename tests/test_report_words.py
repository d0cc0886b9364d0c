"""What a report explains: its words, what its figures' marks say, the texts that it shows, and the command of each claim."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moescope
from moescope.report import hover
from moescope.report.glossary import Glossary, terms
from moescope.report.registry import rendered
from moescope.report.style import heat_cells, look, name_axis, name_rows, new_figure
from moescope.report.texts import of_neuron
from moescope.study.result import StudyResult
from moescope.types import Claim
from tests.synthetic_result import synthetic_result
from tests.synthetic_tables import synthetic_results

SOURCES = Path(moescope.__file__).parent
# names, formats and units of computing, which a report does not explain
PLAIN = set("CPU CSV GB GPU HTML JSON L LM MB PEFT PNG RAM SHA SVG UCI URL WikiText AA AB BA BB".split())  # noqa: SIM905
STUDIED = [f for shape in ("*claims*", "*figures*", "figures/*") for f in SOURCES.glob(f"studies/*/{shape}.py")]


def test_words_link_to_what_they_mean_and_text_is_escaped() -> None:
    glossary = Glossary()
    text = glossary.link("<b>FVU</b> of nested folds, FVU again; MLP.")
    assert text.count("#term-fvu") == 1
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert [term.id for term in glossary.shown()] == ["fold", "fvu", "mlp", "nested"]
    again = glossary.link("FVU")
    assert 'tabindex="-1"' in again
    assert "tabindex" not in text


@pytest.mark.parametrize("text", ["stop.p. 3", "unfolded", "subgroup-wise", "top.k", "MLPX"])
def test_parts_of_words_are_no_words(text: str) -> None:
    assert "<a" not in Glossary().link(text)


def test_no_word_is_two_terms() -> None:
    words = [word for term in terms().values() for word in term.words]
    assert len(words) == len(set(words))
    for term in terms().values():
        assert term.says.endswith("."), term.id


def abbreviations() -> dict[str, str]:
    """What studies can write of themselves and is short for something, with the file where it is written."""
    found: dict[str, str] = {}
    for file in [
        *SOURCES.glob("studies/*/*claims*.py"),
        *SOURCES.glob("studies/*/*figures*.py"),
        *SOURCES.glob("studies/*/figures/*.py"),
    ]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs and " " in node.value:
                for word in re.findall(r"\b[A-Za-z]*[A-Z]{2,}[A-Za-z0-9]*\b|\b[A-Z]+[0-9]+\b", node.value):
                    found.setdefault(word, file.name)
    return found


def test_every_abbreviation_that_a_claim_or_a_caption_can_hold_is_explained() -> None:
    known = {part for term in terms().values() for word in term.words for part in re.split(r"[\s-]", word)}
    missing = {word: file for word, file in abbreviations().items() if word not in known | PLAIN}
    assert missing == {}
    assert len(abbreviations()) > 5


def test_every_word_of_the_verdicts_vocabulary_is_explained() -> None:
    known = {word for term in terms().values() for word in term.words}
    for word in ("nested", "family-wise", "FVU", "AUROC", "LEACE", "PC1", "Holm", "control", "null", "trivial cue", "leakage"):
        assert word in known


def test_points_bars_and_cells_say_their_values() -> None:
    with look():
        figure = new_figure(3)
        a, b, c = figure.subplots(1, 3)
        (line,) = a.plot([1, 2, 4], [0.5, 0.25, 0.125], marker="o", label="loss")
        a.set_xlabel("step")
        a.set_ylabel("nats")
        hover.says(line, ["one <i>", "two", "three"])
        hover.leads(line, ["p", "q", "r"])
        b.barh([0, 1], [3.0, 4.0], label="size")
        name_rows(b, ["left", "right"])
        heat_cells(c, np.array([[0.1, 0.2], [np.nan, 0.4]]), 0, 1)
        hover.leads(c.images[0], ["k", "l", "m", "n"])
        name_axis(c, ["x0", "x1"])
        name_rows(c, ["y0", "y1"])
        figure.canvas.draw()
        found = hover.marks(figure)
    said = [mark.text for mark in found]
    assert said[:3] == ["loss; one <i>", "loss; two", "loss; three"]
    assert said[3:5] == ["size; left; 3.000", "size; right; 4.000"]
    assert said[5:] == ["y0; x0; 0.100", "y0; x1; 0.200", "y1; x1; 0.400"]
    assert [mark.leads for mark in found] == ["p", "q", "r", "", "", "k", "l", "n"]
    for mark in found:
        assert -0.02 < mark.x < 1
        assert -0.02 < mark.y < 1
    assert found[0].y < found[2].y  # the larger value lies higher
    assert found[5].y < found[7].y


@pytest.mark.parametrize("name", ["layers", "comparison"])
def test_the_main_figures_say_what_they_show(name: str) -> None:
    assert len(rendered(synthetic_result(), name).marks) > 10


def test_every_study_has_figures_that_say_what_they_show() -> None:
    for result in synthetic_results():
        names = result.figures
        assert not names or any(rendered(result, name).marks for name in names), result.kind


def page(**tables: pd.DataFrame) -> str:
    claim = Claim("a <b> of nested folds", 0.5, "H1")
    meta = {"command": "moescope circuits m --task a=b", "study": {"study": "circuits", "model": "m"}}
    return StudyResult("circuits", meta, (claim,), tables=tables).report()


def test_each_claim_shows_the_command_that_makes_it() -> None:
    shown = page()
    row = shown[shown.index("<tbody") : shown.index("</tbody>")]
    assert "Made by <code>moescope circuits m --task a=b</code>" in row
    assert "<pre" in shown
    assert "study: circuits\nmodel: m" in shown


def test_texts_are_coloured_marked_and_escaped() -> None:
    strips = pd.DataFrame(
        {
            "task": ["t"], "rank": [1], "site": ["resid"], "layer": [2], "neuron": [3], "class": ["yes"], "value": [1.5],
            "tokens": [["<script>", " b"]], "activations": [[-0.5, 1.5]],
        }
    )  # fmt: skip
    wrong = pd.DataFrame({"task": ["t"], "class": ["yes"], "predicted": ["no"], "probability": [0.9], "text": ["<img src=x>"]})
    contexts = pd.DataFrame({"layer": [0], "expert": [1], "weight": [0.7], "category": ["code"], "text": ["if ⟦<x⟧ else"]})
    shown = page(neuron_texts=strips, misclassified=wrong, expert_contexts=contexts)
    assert '<i class="down" style="--a:0.33" data-tip="−0.500">&lt;script&gt;</i><i class="up" style="--a:1.00"' in shown
    assert "yes, taken for no (0.900)" in shown
    assert "&lt;img src=x&gt;" in shown
    assert "if <mark>&lt;x</mark> else" in shown
    assert "<img src=x" not in shown


def test_a_neurons_marks_lead_to_the_texts_that_the_page_has() -> None:
    result = synthetic_result()
    first = result.table("neurons").iloc[0]
    task, layer, neuron = str(first["task"]), int(first["layer"]), int(first["neuron"])
    strips = pd.DataFrame(
        {
            "task": [task], "rank": [1], "site": ["resid"], "layer": [layer], "neuron": [neuron], "class": ["yes"],
            "value": [1.5], "tokens": [["a"]], "activations": [[1.5]],
        }
    )  # fmt: skip
    shown = replace(result, tables={**result.tables, "neuron_texts": strips}).report()
    address = of_neuron(task, layer, neuron)
    assert shown.count(f'<h3 id="{address}">') == 1
    assert f'<a href="#{address}" tabindex="-1"><rect' in shown
    assert set(re.findall('<a href="#(texts-[^"]*)"', shown)) == {address}  # none leads to what is not there
    assert "where it leads to texts, click it" in shown
