"""The page of runs and the page of the zoo, clicked through in Chromium."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zerozoo.runs.records import read_record
from zerozoo.runs.report import write_run_page, write_zoo_page
from zerozoo.runs.run import Run

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright").expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

NASTY = "<b>bold</b></script><script>document.title = 'taken'; alert(1)</script><img src=x onerror=alert(2)>"
GIF = base64.b64decode("R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs=")
STEPS = 10
LOCAL = ("file:", "data:", "blob:")


def sample(step: int, number: int) -> dict[str, Any]:
    """Of the four responses of a step the first is right, the second is nasty and wrong but rewarded, the third is cut
    off, the last cannot be scored."""
    verdict = ("right", "wrong", "wrong", "unscorable")[number]
    response = (f" {step} = {step}", NASTY, "on and on " * 40, "the same")[number]
    return {
        "step": step,
        "phase": "train",
        "group": number // 2,
        "task": f"task-{number}",
        "question": f"What is {step} + 0?",
        "gold": str(step),
        "response": response,
        "verdict": verdict,
        "extracted": "",
        "reward": (1.0, 0.5, 0.0, 0.0)[number],
        "advantage": (1.5, 0.5, -1.0, -1.0)[number],
        "length": (3, 9, 40, 2)[number],
        "finish": "length" if number == 2 else "stop",
        "parts": {"format": 0.25 * number},
    }


def make_run(directory: Path, seed: int = 0, rate: float = 0.5) -> Path:
    with Run.start(directory, "sums", {"steps": STEPS, "rate": rate, "same": "<i>x</i>"}, seed) as run:
        for step in range(1, STEPS + 1):
            run.log(step, {"reward": step / 10, "policy/kl": 10.0 ** (step - 5), "heldout/greedy_accuracy": step / 20})
            rows = [sample(step, number) for number in range(4)]
            tokens = [" ", str(step), " =", f" {step}", "<eos>"]
            rows[0] |= {"tokens": tokens, "logprobs": [0.0, -6.0, -0.5, -0.1, -2.0]}
            run.sample(rows)
    return directory


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A tab in which nothing may be asked for, no script of others may run, and no error may be left."""
    context = chromium.new_context(viewport={"width": 1366, "height": 768}, reduced_motion="reduce")
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: None if request.url.startswith(LOCAL) else wrong.append(request.url))
    tab.wrong = wrong
    yield tab
    context.close()
    assert wrong == []


@pytest.fixture
def opened(page: Any, tmp_path: Path) -> Callable[..., Any]:
    """Opens the page of some runs."""

    def show(*directories: Path, results: Path = Path("none"), plain: bool = False, samples: int = 200_000) -> Any:
        output = tmp_path / "page.html"
        write_run_page([read_record(folder) for folder in directories], output, results, samples, plain)
        return load(page, output)

    return show


def load(page: Any, path: Path) -> Any:
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-ready='yes']", state="attached")
    return page


def tab(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=re.compile(f"^{name}")).click()
    return page.get_by_role("tabpanel")


def open_samples(page: Any) -> None:
    """Their tab, with the samples unpacked and the first one shown."""
    tab(page, "Samples")
    page.wait_for_selector(".detail .crumbs")


def rows(page: Any) -> Any:
    return page.locator(".list [role=option]")


def test_overview_shows_results_and_what_was_left_out(opened, tmp_path):
    directory = make_run(tmp_path / "run")
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "rew')
    page = opened(directory)
    row = page.locator(".outcomes tbody tr").first
    assert row.locator("td").all_inner_texts() == ["5.0 %", "", "50.0 %", "", "+45.0 points"]
    assert "the last row of metrics.jsonl is half-written and was left out" in page.locator(".remarks").inner_text()
    assert page.title() == "run - zerozoo"


def test_model_text_is_shown_and_never_runs(opened, tmp_path):
    page = opened(make_run(tmp_path / "<script>alert(3)<"))
    for name in ("Curves", "Samples", "Config", "Overview"):
        tab(page, name)
    open_samples(page)
    page.get_by_role("button", name="Rewarded, not right").click()
    rows(page).first.click()
    assert page.locator(".detail pre.response").inner_text() == NASTY
    assert page.locator(".detail img, .detail b, .list img").count() == 0
    assert page.title() == "<script>alert(3)< - zerozoo"
    tab(page, "Config")
    assert "<i>x</i>" in page.locator(".config").first.inner_text()


def test_the_policy_stops_what_would_be_injected(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    ran = page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
            return fetch('https://example.org/').then(() => 'fetched', () => window.ran || 'stopped');
        }"""
    )
    assert ran == "stopped"
    assert any("Content Security Policy" in text for text in page.wrong)
    page.wrong.clear()


def test_filters_count_and_choose(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    open_samples(page)
    chips = page.locator(".chips button").all_inner_texts()
    assert chips[:5] == ["All 40", "Right 10", "Wrong 20", "Unscorable 10", "Timeout 0"]
    assert chips[5:] == ["Clipped 10", "Rewarded, not right 10"]
    page.get_by_role("button", name="Clipped").click()
    assert page.locator(".total").inner_text() == "10 responses"
    assert "cut off at the limit" in page.locator(".detail").inner_text()
    page.get_by_role("button", name="All 40").click()
    page.get_by_label("Search prompts and responses").fill("WHAT IS 7")
    expect(page.locator(".total")).to_have_text("4 responses")
    page.get_by_label("Search prompts and responses").fill(".*")  # a text and no pattern
    expect(page.locator(".total")).to_have_text("0 responses")
    assert "No response meets the filters" in page.locator(".detail").inner_text()


def test_step_slider_sort_and_phase(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    open_samples(page)
    slider = page.get_by_label("Step", exact=True)
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".slide .where").inner_text() == "step 1"
    assert page.locator(".total").inner_text() == "4 responses"
    page.get_by_role("button", name="all steps").click()
    assert page.locator(".total").inner_text() == "40 responses"
    page.get_by_label("Sort by").select_option("length")
    assert rows(page).first.locator(".n").nth(3).inner_text() == "2"
    page.get_by_role("button", name="rising").click()
    assert rows(page).first.locator(".n").nth(3).inner_text() == "40"
    page.get_by_label("Sort by").select_option("advantage")
    assert rows(page).first.locator(".n").nth(2).inner_text() == "+1.50"
    page.get_by_label("Phase").select_option("train")
    assert page.locator(".total").inner_text() == "40 responses"


def test_arrows_move_in_the_list(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    open_samples(page)
    rows(page).first.click()
    selected = page.locator(".list [aria-selected=true]")
    for key, place in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 39), ("Home", 0)):
        page.keyboard.press(key)
        assert selected.get_attribute("data-place") == str(place)
        assert page.locator(".list").get_attribute("aria-activedescendant") == selected.get_attribute("id")
    page.keyboard.press("ArrowDown")
    assert "step 1 · train · group 0 · task-1" in page.locator(".detail .crumbs").inner_text()


def test_a_response_with_its_tokens_parts_and_group(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    open_samples(page)
    rows(page).first.click()
    page.wait_for_selector(".detail .token")
    tokens = page.locator(".detail .token")
    assert tokens.all_text_contents() == [" ", "1", " =", " 1", "<eos>"]
    assert tokens.nth(1).get_attribute("title") == "log-prob −6.00, probability 0.2 %"
    shades = tokens.evaluate_all("all => all.map((one) => one.style.getPropertyValue('--shade'))")
    assert shades == ["0%", "100%", "13%", "3%", "50%"]
    assert tokens.evaluate_all("all => all.map((one) => one.classList.contains('beyond'))") == [False] * 4 + [True]
    assert "least likely −6.00" in page.locator(".shading").inner_text()
    facts = page.locator(".detail .facts").first.inner_text().split("\n")
    assert facts == ["reward", "1", "↳ format", "0", "advantage", "+1.500", "length", "3 tokens"]
    page.locator(".detail details", has_text="The same group").locator("button").first.click()
    assert "task-1" in page.locator(".detail .crumbs").inner_text()
    assert page.locator(".list [aria-selected=true]").get_attribute("data-place") == "1"


def test_frequent_responses_and_only_one_of_them(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    open_samples(page)
    page.get_by_text("Responses that come up most often").click()
    expect(page.locator(".frequent tbody tr")).to_have_count(3)
    found = page.locator(".frequent tbody tr").all_inner_texts()
    assert [text.split("\t")[:4] for text in found] == [
        ["10", "25 %", "0.50", "0 %"],
        ["10", "25 %", "0.00", "0 %"],
        ["10", "25 %", "0.00", "0 %"],
    ]
    page.locator(".frequent button").last.click()
    assert page.locator(".total").inner_text() == "10 responses"
    page.get_by_role("button", name="show others again").click()
    assert page.locator(".total").inner_text() == "40 responses"


def test_curves_hover_zoom_scale_and_choice(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    panel = tab(page, "Curves")
    assert panel.locator("figcaption").all_inner_texts() == ["reward", "policy/kl", "heldout/greedy_accuracy"]
    chart = panel.locator("svg.chart").first
    box = chart.bounding_box()

    def at(step: float) -> tuple[float, float]:
        return box["x"] + 58 + (step - 1) / 9 * (box["width"] - 72), box["y"] + 80

    page.mouse.move(*at(4))
    assert panel.locator(".tip:visible").inner_text().split("\n") == ["step 4", "0.4"]
    assert panel.locator(".cursor line").count() == 3  # in all charts
    ticks = "all => all.map((one) => one.textContent).filter((text) => /^[0-9.]+$/.test(text))"
    before = chart.locator("text").evaluate_all(ticks)
    page.mouse.move(*at(2))
    page.mouse.down()
    page.mouse.move(*at(3), steps=4)
    page.mouse.up()
    zoomed = chart.locator("text").evaluate_all(ticks)
    assert zoomed != before
    assert "2.5" in zoomed
    page.mouse.dblclick(*at(5))
    assert chart.locator("text").evaluate_all(ticks) == before
    page.get_by_label("Scale").select_option("log")
    assert panel.locator("figure").nth(1).locator("text").first.text_content() == "0.0001"
    panel.get_by_role("checkbox", name="kl").uncheck()
    assert panel.locator("figcaption").all_inner_texts() == ["reward", "heldout/greedy_accuracy"]
    panel.get_by_label("Find a metric").fill("acc")
    assert panel.locator("label.choice:visible").all_inner_texts() == ["greedy_accuracy"]


def test_curves_by_keyboard(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    panel = tab(page, "Curves")
    chart = panel.locator("svg.chart").first
    assert "reward over step. run: from 0.1 to 1" in chart.get_attribute("aria-label")
    chart.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert panel.locator(".tip:visible").inner_text().split("\n") == ["step 2", "0.2"]
    whole = chart.inner_html()
    page.keyboard.press("+")
    assert chart.inner_html() != whole
    page.keyboard.press("0")
    assert chart.inner_html() == whole


def test_several_runs_over_one_another(opened, tmp_path):
    page = opened(make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, rate=0.25))
    panel = tab(page, "Curves")
    assert panel.locator("figure").first.locator("path.line").count() == 2
    page.get_by_label("b", exact=True).uncheck()
    assert panel.locator("figure").first.locator("path.line").count() == 1
    tab(page, "Config")
    assert page.locator(".config").first.locator("tr.differs th").all_inner_texts() == ["rate"]
    page.get_by_label("only what differs").check()
    assert page.locator(".config").first.locator("tbody tr:visible").count() == 1
    open_samples(page)
    page.get_by_label("Run", exact=True).select_option("1")
    expect(page.locator(".total")).to_have_text("40 responses")  # the list is made anew after the choice


def test_colours_of_the_night(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate(background) == "rgb(22, 24, 28)"
    page.get_by_role("button", name="Light colours").click()
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == "rgb(255, 255, 255)"  # the choice counts more than the system


def test_a_claim_with_its_seeds(opened, tmp_path):
    directory = make_run(tmp_path / "sums" / "main" / "soft" / "seed-1", seed=1)
    (directory / "cell.json").write_text(json.dumps({"key": "k", "values": {"acc": 0.75}, "seconds": 1.0}))
    result = {
        "slug": "sums",
        "name": "main",
        "statement": "Soft beats hard.",
        "verdict": "HOLDS",
        "reason": "above",
        "metric": "acc",
        "effect": {"value": 0.5, "low": 0.25, "high": None, "threshold": 0.1},
        "seeds": [0, 1],
        "arms": {"soft": {"0": 0.5, "1": 0.75}, "hard": {"0": 0.25, "1": 0.125}},
        "summary": {},
    }
    (tmp_path / "sums.json").write_text(json.dumps(result))
    page = opened(directory, results=tmp_path)
    claim = page.locator(".claim")
    assert claim.locator(".badge").inner_text() == "HOLDS"
    assert "Soft beats hard." in claim.inner_text()
    assert "effect +0.5 with 95 % interval [+0.25, –]" in claim.inner_text()
    assert claim.locator("svg").get_attribute("aria-label") == "effect +0.5 [+0.25, –], threshold 0.1"
    assert claim.locator("td.own").inner_text() == "0.750"


def test_a_control_run_has_episodes_and_its_picture(opened, tmp_path):
    directory = tmp_path / "run"
    with Run.start(directory, "bc", {"steps": 2}, 0) as run:
        for step in (1, 2):
            run.log(step, {"evaluation/return": 10.0 * step})
            for n in range(3):
                row = {"step": step, "phase": "evaluation", "length": 5, "episode": n, "seed": n}
                run.sample([{**row, "return": 10.0 * step + n, "success": n > 1}])
    (directory / "strip.gif").write_bytes(GIF)
    page = opened(directory)
    panel = tab(page, "Episodes")
    assert panel.locator("svg circle.scatter").count() == 6
    assert panel.locator("svg path.band").count() == 1
    picture = panel.locator("img")
    assert picture.get_attribute("alt") == "strip.gif"
    assert picture.evaluate("one => one.naturalWidth") == 1
    assert rows(panel).count() == 6
    panel.get_by_role("button", name="return").click()
    assert rows(panel).first.locator("span").all_inner_texts() == ["2", "evaluation", "5", "2", "2", "22", "yes"]
    tab(page, "Figures")
    assert page.locator(".pictures img").count() == 1


def test_a_hundred_thousand_samples_are_a_few_elements(opened, tmp_path):
    directory = tmp_path / "run"
    with Run.start(directory, "sums", {"steps": 1000}, 0) as run:
        run.log(1000, {"reward": 1.0})
        for step in range(1000):
            run.sample({**sample(step, n % 4), "response": f"{step} {n}"} for n in range(100))
    page = opened(directory)
    open_samples(page)
    assert page.locator(".total").inner_text() == "100 000 responses".replace(" ", "\u202f", 1)
    assert rows(page).count() < 60
    rows(page).first.click()
    page.keyboard.press("End")
    assert "step 999" in page.locator(".detail .crumbs").inner_text()
    assert rows(page).count() < 60
    page.get_by_label("Search prompts and responses").fill("777 42")
    expect(page.locator(".total")).to_have_text("1 response")


def test_an_old_browser_gets_a_sentence_and_the_plain_page_works(opened, page, tmp_path):
    page.add_init_script("delete window.DecompressionStream")
    directory = make_run(tmp_path / "run")
    packed = write_run_page([read_record(directory)], tmp_path / "packed.html", tmp_path)
    page.goto(packed.path.as_uri())
    assert "make the page again with --plain" in page.locator("[role=alert]").inner_text()
    assert any("--plain" in text for text in page.wrong)
    page.wrong.clear()
    opened(directory, plain=True)
    open_samples(page)
    assert page.locator(".total").inner_text() == "40 responses"


def test_the_zoo(page, tmp_path):
    effect = {"value": -0.5, "low": -1.0, "high": -0.25, "threshold": 0.0}
    claim = {"name": "main", "statement": NASTY, "verdict": "FAILS", "metric": "acc", "reason": "below"}
    claim |= {"effect": effect, "seeds": ["0", "1"], "seconds": 61.0}
    common = {"docs": None, "results": None, "arxiv": None, "others": [], "summary": "", "planned": True}
    made = [
        {**common, "slug": "one", "family": "easy", "paper": "One", "status": "FAILS", "claim": claim},
        {**common, "slug": "two", "family": "hard", "paper": "Two", "status": "not written yet", "claim": None},
    ]
    made[0]["docs"] = "d/one.md"
    made[0]["others"] = [{"name": "more", "statement": "More.", "verdict": "not run"}]
    load(page, write_zoo_page(made, ["x.json is damaged"], tmp_path / "zoo.html").path)
    body = page.locator(".zoo-table tbody")
    assert body.locator(".badge").all_inner_texts() == ["FAILS", "not run", "not written yet"]
    assert NASTY in body.inner_text()
    assert "−0.5 [−1, −0.25]\nthreshold 0" in body.inner_text()
    assert body.locator("tr").first.locator("td.n").all_inner_texts() == ["2", "1 min 01 s"]
    assert body.get_by_role("link", name="docs").get_attribute("href") == "d/one.md"
    assert "2 systems from papers, 1 of them written" in page.locator(".intro").inner_text()
    assert "x.json is damaged" in page.locator(".remarks").inner_text()
    page.get_by_role("button", name="not written yet 1").click()
    assert body.locator("th").all_inner_texts() == ["two"]
    page.get_by_role("button", name="All 2").click()
    page.get_by_role("button", name="Recipe").click()
    page.get_by_role("button", name="Recipe").click()
    assert body.locator("th").all_inner_texts() == ["two", "one\ndocs"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_label("Family").select_option("easy")
    assert body.locator("th").all_inner_texts() == ["one\ndocs"]
    page.get_by_label("Search recipes, papers, claims").fill("nothing of this")
    assert page.locator(".total").inner_text() == "0 rows"
