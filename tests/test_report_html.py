"""The HTML page: self-contained, verdicts first, every text escaped, readable without eyes, colour or a wide screen."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import pandas as pd
import pytest

from moescope.report.format import STYLES, headline, verdict_style
from moescope.report.html import ROWS_SHOWN
from moescope.report.registry import Image, available
from moescope.study.result import StudyResult
from moescope.types import Circuit, Claim, Control, Neuron, Published, Site
from tests.synthetic_result import synthetic_result

EVIL = "<script>alert('x')</script> & \"q\" <img src=x onerror=y> {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADS = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "formaction"}


class Page(HTMLParser):
    """Elements in order, the text under each, and whether every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert self._open == [], "an element is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        texts: list[str] = []
        self.elements.append((tag, {k: v or "" for k, v in attrs}, texts))
        if tag not in VOID:
            self._open.append((tag, texts))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1][0] == tag, f"</{tag}> closes <{self._open[-1][0]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for _, texts in self._open:
            texts.append(data)

    def find(self, tag: str, **wanted: str) -> list[tuple[dict[str, str], str]]:
        found = [(a, " ".join("".join(t).split())) for name, a, t in self.elements if name == tag]
        return [(a, t) for a, t in found if all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]


RESULT = synthetic_result(optional=False)


@pytest.fixture(scope="module")
def text() -> str:
    return RESULT.report()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_loaded_from_elsewhere(page: Page, text: str) -> None:
    for tag, attributes, _ in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in attributes.keys() & LOADS:
            assert attributes[name].startswith(("#", "data:")), f"<{tag} {name}={attributes[name][:80]}>"
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?:", text)
    policy = page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert "default-src 'none'" in policy
    assert [attributes for attributes, _ in page.find("script")] == [{}]


def test_figures_are_inside_and_load_nothing_either(page: Page) -> None:
    images = page.find("img")
    assert len(images) == len(available(RESULT))
    for attributes, _ in images:
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/svg+xml"
        drawing = ElementTree.fromstring(unquote(data))
        assert drawing.tag.endswith("svg")
        for element in drawing.iter():
            assert not element.tag.endswith("script")
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:"))
        assert len(attributes["alt"]) > 60, "a reader who cannot see the figure is told what it shows"


def test_the_answer_comes_first_then_a_figure_then_the_verdicts(page: Page, text: str) -> None:
    result = RESULT
    heads = [t for a, t in page.find("h2")]
    assert heads[-6:] == ["Verdicts", "Further figures", "Circuits", "Tables", "Provenance", "Words"]
    assert heads[:-6] == ["Believe", "Do not believe", "Not settled"]
    assert headline(result.claims) in re.sub("<[^>]*>", "", text[: text.index("<main")]).replace("\n", " ")
    verdicts = text.index('id="verdicts"')
    last_claim = text.rindex('<th scope="rowgroup">')
    assert text.index('id="answer"') < text.index("<img") < verdicts < last_claim < text.index("<img", verdicts)
    assert text.index("<img", verdicts) < text.index("<details")


def test_each_claim_has_its_row(page: Page) -> None:
    result = RESULT
    heads, cells = page.find("th", scope="rowgroup"), page.find("td")
    assert [t.removeprefix("# ") for _, t in heads] == [c.statement for c in result.claims]
    badges = [t for a, t in page.find("span", class_="badge")]
    assert [b.split(" ", 1)[1] for b in badges] == [c.verdict for c in result.claims]
    measured = [t for a, t in cells if a.get("data-label") == "measured"]
    assert measured[3] == "layers 2–4"
    assert [t for a, t in cells if a.get("data-label") == "published"][:3] == ["0.967", "0", "1.7 ± 0.1"]
    assert [t for a, t in cells if a.get("data-label") == "p (Holm)"][:3] == ["0.001 (0.004)", "0.94", "–"]
    assert [t for a, t in cells if a.get("data-label") == "control"][2] == "1.500"
    assert [t for a, t in cells if a.get("data-label") == "95 %"][4] == "0.690 to 0.730"
    notes = [t for a, t in cells if a.get("colspan") == "6"]
    assert all(c.words in n for c, n in zip(result.claims, notes, strict=True))


def test_verdicts_are_told_without_colour(page: Page) -> None:
    marks = {t[0] for _, t in page.find("span", class_="badge")}
    assert len(marks) == len({verdict_style(c).mark for c in RESULT.claims})


def _evil() -> StudyResult:
    claims = (Claim(EVIL, EVIL, EVIL, Published(EVIL, EVIL), control=Control(EVIL, EVIL), family=EVIL, words=EVIL),)
    circuits = {EVIL: Circuit(EVIL, (Neuron(Site("resid", 0), 1),), (1.0,), EVIL)}
    tables = {
        "odd": pd.DataFrame({EVIL: [EVIL], "list": [[EVIL]]}),
        "layers": synthetic_result((EVIL,), optional=False).tables["layers"],
    }
    meta = {"title": EVIL, "model": EVIL, "notes": [EVIL], "data": {EVIL: {"source": EVIL}}, EVIL: EVIL}
    return StudyResult("circuits", meta, claims, circuits, tables)


def test_every_text_is_escaped() -> None:
    text = _evil().report()
    page = Page(text)  # a text that closed an element would show here
    assert text.count("<script") == 1
    assert not any("onerror" in a for _, a, _ in page.elements)
    assert [t for _, t in page.find("h1")] == [" ".join(EVIL.split())]
    assert "49" not in page.find("h1")[0][1], "a template in a text is not run"
    drawing = unquote(page.find("img")[0][0]["src"].split(",", 1)[1]).encode()
    ElementTree.fromstring(drawing)
    assert b"<script" not in drawing


def test_headings_and_names(page: Page) -> None:
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), "no level of headings is left out"
    assert page.find("html")[0][0]["lang"] == "en"
    assert "width=device-width" in page.find("meta", name="viewport")[0][0]["content"]
    names = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(names) == len(set(names))
    targets = {a["href"][1:] for a, _ in page.find("a")} | {
        a["aria-labelledby"] for _, a, _ in page.elements if "aria-labelledby" in a
    }
    assert targets <= set(names)
    for attributes, _ in page.find("div", class_="scroll"):
        assert attributes["tabindex"] == "0", "what scrolls can be scrolled by keyboard"
        assert attributes["aria-label"]


def _contrast(a: str, b: str) -> float:
    def luminance(color: str) -> float:
        full = color if len(color) == 7 else "#" + "".join(c * 2 for c in color[1:])
        parts = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_light_and_dark(text: str) -> None:
    themes = re.findall(r":root \{([^}]*)\}", text)
    assert len(themes) == 2
    for theme in themes:
        colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})", theme))
        assert {v.css for v in STYLES.values()} <= colors.keys()
        for name in colors.keys() - {"page", "card", "line"}:
            for ground in ("page", "card"):
                assert _contrast(colors[name], colors[ground]) >= 4.5, f"{name} on {ground}"


def test_long_tables_say_that_they_are_cut(page: Page, text: str) -> None:
    result = RESULT
    summaries = {t.split(" ", 1)[0]: t for _, t in page.find("summary")}
    assert summaries.keys() == result.tables.keys()
    cut = 0
    for name, table in result.tables.items():
        rows = text.split(f'data-name="{name}"', 1)[1].split("</table>", 1)[0].count("<tr>") - 1
        assert rows >= min(len(table), ROWS_SHOWN)
        assert (f"the first {rows} shown" in summaries[name]) == (rows < len(table))
        assert f"{len(table):,} rows" in summaries[name]
        cut += rows < len(table)
    assert cut


def test_provenance_is_whole() -> None:
    meta = {
        "zebra": 1,
        "seed": 7,
        "data": {"certainty": {"sha256": "ab" * 32, "n": 10}},
        "versions": {"torch": "2.13.0"},
        "command": "moescope circuits m --task a=b",
        "tasks": [{"name": "certainty", "classes": ["x", "y"]}, "plain"],
        "flag": False,
        "none": None,
        "empty": {},
    }
    page = Page(StudyResult("circuits", meta).report())
    names = [t for _, t in page.find("dt")]
    assert names == ["tasks", "data", "seed", "command", "versions", "zebra", "flag", "none", "empty"]
    texts = [t for _, t in page.find("dd")]
    assert texts[0] == "certainty.classes x, y2 plain"
    assert texts[1] == f"certainty.sha256 {'ab' * 32}certainty.n 10"
    assert texts[6:] == ["no", "–", "–"]


def test_a_result_with_nothing_in_it_is_a_page_too() -> None:
    page = Page(StudyResult("distill").report())
    assert [t for _, t in page.find("h2")] == ["Verdicts", "Provenance"]
    assert page.find("h1")[0][1] == "Distill study of model"
    assert "No claims were made." in page.find("p", class_="headline")[0][1]


def test_images_that_are_drawn_already_are_taken() -> None:
    from moescope.report.html import html_report

    result = StudyResult("circuits", tables={"layers": RESULT.tables["layers"]})
    text = html_report(result, images={"layers": Image(b"", b"<svg>drawn before</svg>")})
    assert quote("<svg>drawn before</svg>", safe=" /") in text


def test_same_result_same_page() -> None:
    first, second = (synthetic_result(("topic",), optional=False).report() for _ in range(2))
    assert first == second
