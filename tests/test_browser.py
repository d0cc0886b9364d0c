"""The live page in a browser, as a person uses it: types, chooses, bans and sees the text change; by keyboard, at both widths.
And a report, which is a file: what its marks say and lead to, its tables, its words.

``make test-browser``; left out where Playwright or a Chromium is missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from tests.served_studies import wandering
from tests.synthetic_result import synthetic_result

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; make test-browser installs it")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)  # a slow machine is no fault of the page

WIDTHS = {"wide": (1400, 1000), "narrow": (390, 844)}
SCHEMES = ("light", "dark")
PROMPT = "The film was a joy to watch and"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("no Chromium is installed; install one, or name it in BROWSER_PATH")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of moe-tiny with a classifier of two fields, and cards made at the start."""
    from moescope.models import load
    from moescope.server import Limits, gather
    from tests.test_serve_hostile import serving

    model = load("moe-tiny", head=True)
    folder = tmp_path_factory.mktemp("exit") / "wandering"
    dataclasses.replace(wandering(model), template="Question: {question}\nAnswer: {answer}").write(folder)
    with serving(gather(model, exits=[folder], cards=True), Limits()) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That of the planted llama with its circuit and a router, behind a token."""
    from moescope.server import Limits
    from tests.served_studies import save_studies, serve_studies
    from tests.test_serve_hostile import serving

    served = serve_studies(save_studies(tmp_path_factory.mktemp("studies")), cards=True)
    with serving(served, Limits(), token="correct-horse-battery") as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in SCHEMES], ids=lambda p: "-".join(p))
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """One that fails the test at a word on its console, a request that leaves the server, or a page wider than its window."""
    width, scheme = request.param
    wide, tall = WIDTHS[width]
    made = browser.new_page(viewport={"width": wide, "height": tall}, color_scheme=scheme)
    said: list[str] = []
    made.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    made.on("pageerror", lambda error: said.append(str(error)))
    own = ("http://127.0.0.1:", "file://", "data:")
    made.on("request", lambda r: None if r.url.startswith(own) else said.append(f"asked for {r.url}"))
    made.set_default_timeout(60_000)
    yield made
    # that a server with a token refused the first request is said by the browser, whatever the page does
    assert [line for line in said if "401 (Unauthorized)" not in line] == []
    assert made.evaluate("document.documentElement.scrollWidth") <= wide
    found = axe.Axe().run(made).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
    made.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with every part, whose first neuron has a text."""
    result = synthetic_result()
    first = result.table("neurons").iloc[0]
    strips = pd.DataFrame(
        {
            "task": [first["task"]], "rank": [1], "site": ["resid"], "layer": [int(first["layer"])],
            "neuron": [int(first["neuron"])], "class": ["yes"], "value": [1.5], "tokens": [["good"]], "activations": [[1.5]],
        }
    )  # fmt: skip
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(dataclasses.replace(result, tables={**result.tables, "neuron_texts": strips}).report(), encoding="utf-8")
    return file.as_uri()


def over(page: Page) -> None:
    """Waits until nothing is being written."""
    expect(page.locator("#write-go")).to_be_enabled(timeout=60_000)
    expect(page.locator("#write-stop")).to_be_disabled()


def text(page: Page, run: int = 0) -> list[str]:
    return page.locator("#runs > .run").nth(run).locator(".tok:not(.given) b").all_inner_texts()


def write(page: Page, address: str, new: int = 12) -> None:
    page.goto(address)
    page.locator("#prompt").fill(PROMPT)
    page.locator("#new-tokens").fill(str(new))
    page.locator("#write-go").click()
    over(page)


def test_ban_an_expert_and_see_the_text_change(page: Page, moe: str) -> None:
    write(page, moe)
    before = text(page)
    assert before
    assert page.locator("#runs > .run").count() == 1
    for layer in range(3):  # of three layers the expert that weighs most at the first written token
        page.locator("#runs > .run").nth(0).locator(".tok:not(.given)").first.click()
        page.locator("#chosen tbody tr").nth(layer).locator("button").first.click()
        expect(page.locator("#card")).to_contain_text("% of tokens")
        page.get_by_role("button", name="Ban", exact=True).click()
        expect(page.locator("#runs > .run")).to_have_count(2)
        over(page)
    expect(page.locator("#compare")).to_contain_text("The text changes.")
    assert text(page, 0) == before
    after = text(page, 1)
    assert after != before
    # token by token the banned are not there
    banned = [button.inner_text().split()[1] for button in page.locator("#edits button").all() if "ban" in button.inner_text()]
    assert len(banned) == 3
    for i in range(3):
        page.locator("#runs > .run").nth(1).locator(".tok").nth(i).click()
        for at in banned:
            layer, expert = at.split(":")
            shown = page.locator("#chosen tbody tr").nth(int(layer)).locator("button").all_inner_texts()
            assert expert not in [name.split()[0] for name in shown]
    # and taken back it is as before
    page.get_by_role("button", name="Take all back").click()
    expect(page.locator("#runs > .run")).to_have_count(1)
    assert text(page) == before


def test_boost_scale_and_ablate_from_the_card(page: Page, moe: str) -> None:
    write(page, moe, 6)
    page.locator("#chosen tbody tr").nth(1).locator("button").first.click()
    card = page.locator("#card")
    card.get_by_label("by", exact=True).fill("-8")
    card.get_by_role("button", name="Boost").click()
    over(page)
    card.get_by_label("×").fill("3")
    card.get_by_role("button", name="Scale").click()
    over(page)
    names = page.locator("#edits button").all_inner_texts()
    assert [name.split()[0] for name in names] == ["boost", "scale", "Take"]
    assert " by -8" in names[0]
    assert " ×3" in names[1]
    card.get_by_role("button", name="Ablate").click()  # which leaves nothing to scale or boost
    over(page)
    assert [name.split()[0] for name in page.locator("#edits button").all_inner_texts()] == ["ablate"]
    card.get_by_label("×").fill("1e9")
    card.get_by_role("button", name="Scale").click()  # more than the server allows is not asked for
    assert [name.split()[0] for name in page.locator("#edits button").all_inner_texts()] == ["ablate"]


def test_a_link_brings_back_prompt_edits_and_selection(page: Page, moe: str, browser: Browser) -> None:
    write(page, moe, 8)
    page.locator("#colour").select_option("layer-3")
    page.locator("#chosen tbody tr").nth(2).locator("button").first.click()
    page.get_by_role("button", name="Ablate").click()
    expect(page.locator("#runs > .run")).to_have_count(2)
    over(page)
    page.locator("#runs > .run").nth(1).locator(".tok").nth(4).click()
    link, shown = page.url, [text(page, 0), text(page, 1)]
    other = browser.new_page()
    other.goto(link)
    expect(other.locator("#runs > .run")).to_have_count(2)
    over(other)
    assert [text(other, 0), text(other, 1)] == shown
    assert other.locator("#prompt").input_value() == PROMPT
    assert other.locator("#colour").input_value() == "layer-3"
    assert other.locator("#edits").inner_text() == page.locator("#edits").inner_text()
    expect(other.locator("#after-4")).to_have_attribute("aria-selected", "true")
    expect(other.locator("#card-head")).to_have_text(page.locator("#card-head").inner_text())
    other.close()


def test_by_keyboard_alone(page: Page, moe: str) -> None:
    page.goto(moe)
    expect(page.locator("#write")).to_be_visible()
    page.locator("#prompt").focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    over(page)
    strip = page.locator(".tokens")
    strip.focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#before-3")).to_have_attribute("aria-selected", "true")
    assert strip.get_attribute("aria-activedescendant") == "before-3"
    page.keyboard.press("ArrowDown")
    expect(page.locator("#colour")).to_have_value("layer-1")
    page.keyboard.press("Enter")
    expect(page.locator("#card")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # its first button: ban
    expect(page.locator("#runs > .run")).to_have_count(2)
    over(page)
    expect(page.locator("#edits")).to_contain_text("ban 1:")


def test_an_example_is_picked_and_what_is_said_is_no_markup(page: Page, moe: str) -> None:
    page.goto(moe)
    expect(page.locator("#example option")).to_have_count(9)
    page.locator("#example").select_option("2")
    over(page)
    option = page.locator("#example option").nth(3).inner_text()
    assert page.locator("#prompt").input_value().startswith(option.partition(": ")[2].rstrip("…"))
    assert text(page)
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page.locator("#prompt").fill(hostile)
    page.locator("#write-go").click()
    over(page)
    assert page.locator("#runs img, #runs script").count() == 0


def test_a_hostile_link_is_refused_in_words(browser: Browser, moe: str) -> None:
    page = browser.new_page()  # whose console tells of the refusals
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(moe + "#p=%3Cb%3Ebold%3C%2Fb%3E&n=4&e=ban+%3Cimg%3E,explode+1:1&card=%3Cimg%3E&at=after.999999&by=nothing")
    expect(page.locator("#runs")).to_contain_text("Input should be 'ban'")
    expect(page.locator("#card")).to_contain_text("has no card")
    assert page.locator("#live img, #live b b").count() == 0
    assert broken == []
    page.close()


def test_a_classifier_is_given_its_fields(page: Page, moe: str) -> None:
    page.goto(moe)
    expect(page.locator("#classify-as")).to_have_value("wandering")
    page.get_by_label("question", exact=True).fill("Who wrote it?")
    page.get_by_label("answer", exact=True).fill("Nobody knows.\nReally.")
    page.locator("#classify-go").click()
    expect(page.locator("#answers")).to_contain_text("of 5 layers")
    body = json.dumps({"rows": [{"question": "Who wrote it?", "answer": "Nobody knows.\nReally."}]})
    sent = page.request.post(f"{moe}v1/classify/wandering", data=body, headers={"content-type": "application/json"})
    expect(page.locator("#answers .line strong")).to_have_text(sent.json()["results"][0]["label"])


def test_circuit_neurons_behind_a_token(page: Page, dense: str) -> None:
    page.goto(dense)
    page.get_by_label("This server asks for its token").fill("correct-horse-battery")
    page.get_by_role("button", name="Open").click()
    page.locator("#prompt").fill("w5 w30 w3 w7")
    page.locator("#new-tokens").fill("6")
    page.locator("#write-go").click()
    over(page)
    meter = page.locator(".meter").first
    expect(meter).to_contain_text("unknown")
    assert meter.locator(".named").count() == 1  # a task, or unknown
    assert meter.locator("div").count() == 3
    expect(page.locator("#runs > .run").first).to_contain_text("of 4 layers")  # how deep the classifiers go for it
    page.locator("#chosen tbody tr").first.locator("button").click()
    expect(page.locator("#card")).to_contain_text("in the circuit of planted")
    assert page.get_by_role("button", name="Ban", exact=True).count() == 0
    page.locator("#card").get_by_label("×").fill("-20")
    page.get_by_role("button", name="Scale").click()
    expect(page.locator("#runs > .run")).to_have_count(2)
    over(page)
    expect(page.locator("#compare")).to_contain_text("The text changes.")


def test_a_server_that_is_gone_says_so(browser: Browser, moe: str) -> None:
    page = browser.new_page()
    write(page, moe, 4)
    page.route("**/v1/stream", lambda route: route.abort())
    page.locator("#seed").fill("1")
    page.locator("#write-go").click()
    expect(page.locator("#runs")).to_contain_text("the server does not answer; is it still running?")
    page.unroute("**/v1/stream")
    page.locator("#write-go").click()
    over(page)
    assert text(page)
    page.close()


def test_a_reports_marks_words_and_tables(page: Page, report: str) -> None:
    page.goto(report)
    answer, first_figure = page.locator("#answer").bounding_box(), page.locator("figure").first.bounding_box()
    assert answer is not None
    assert first_figure is not None
    assert answer["y"] < first_figure["y"]
    mark = page.locator(".marks a rect").first
    mark.scroll_into_view_if_needed()
    page.wait_for_timeout(300)  # scrolling takes a word away, and is told late
    mark.hover()
    expect(page.locator("#tip")).to_be_visible()
    mark.click()
    texts = page.url.partition("#")[2]
    assert texts.startswith("texts-")
    expect(page.locator(f"[id='{texts}']")).to_be_in_viewport()
    word = page.locator("a.term").first
    word.focus()
    expect(page.locator("#tip")).to_have_text(page.locator(word.get_attribute("href") + " + dd").inner_text())
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()
    page.locator("details summary").first.click()
    table = page.locator("details[open] table.data")
    rows = table.locator("tbody tr:visible").count()
    page.locator("details[open] input[type=search]").fill("no such row")
    expect(table.locator("tbody tr:visible")).to_have_count(0)
    page.locator("details[open] input[type=search]").fill("")
    expect(table.locator("tbody tr:visible")).to_have_count(rows)
    with page.expect_download() as saved:
        page.locator("details[open] .tools button").click()
    assert saved.value.suggested_filename.endswith(".csv")
    page.locator("a.address").first.click()
    expect(page.locator("tbody:target .by")).to_contain_text("moescope")
