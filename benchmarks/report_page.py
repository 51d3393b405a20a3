"""The page of `zerozoo runs report`: its size and how fast it opens, and the pictures of it in the documents.

    python benchmarks/report_page.py measure [--samples 100000] [--output results/report.json]
    python benchmarks/report_page.py pictures RUN... [--images docs/images]

Needs Playwright and Chromium ($CHROMIUM names another one). `measure` makes up a run with responses of 50 tokens, half
of them with log-probs as `zerozoo train` logs them, and reports the file's bytes, and the milliseconds until the
overview and then the samples are on the screen, medians of five.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from zerozoo.cli.zoo_rows import zoo_rows
from zerozoo.runs.records import read_record
from zerozoo.runs.report import write_run_page, write_zoo_page
from zerozoo.runs.run import Run
from zerozoo.runs.versions import machine, versions

REPEATS = 5
PER_STEP, TOKENS = 100, 50
RESULTS = Path("results/reproduce")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--samples", type=int, default=100_000)
    measuring.add_argument("--output", type=Path, default=Path("results/report.json"))
    drawing = commands.add_parser("pictures")
    drawing.add_argument("runs", type=Path, nargs="*")
    drawing.add_argument("--images", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    if options.command == "measure":
        found = measure(options.samples)
        options.output.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found, indent=2))
    else:
        pictures(options.runs, options.images)


def measure(samples: int) -> dict[str, Any]:
    """Size of the page of a made-up run, and milliseconds until it is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "run", samples)
        began = time.perf_counter()
        page = write_run_page([read_record(folder / "run")], folder / "page.html", RESULTS, samples)
        writing = time.perf_counter() - began
        opened, listed = [], []
        for _ in range(REPEATS):
            with tab() as tab_page:
                began = time.perf_counter()
                tab_page.goto(page.path.as_uri(), wait_until="commit")
                tab_page.wait_for_selector("html[data-ready='yes']", state="attached", timeout=60_000)
                opened.append(1000 * (time.perf_counter() - began))
                began = time.perf_counter()
                tab_page.get_by_role("tab", name="Samples").click()
                tab_page.wait_for_selector(".detail .crumbs")
                listed.append(1000 * (time.perf_counter() - began))
        return {
            "samples": samples,
            "tokens_with_logprobs": samples // 2 * TOKENS,
            "samples_jsonl_bytes": (folder / "run" / "samples.jsonl").stat().st_size,
            "page_bytes": page.size,
            "seconds_to_write": round(writing, 2),
            "milliseconds_to_open": round(statistics.median(opened)),
            "milliseconds_to_samples": round(statistics.median(listed)),
            "zerozoo": versions()["zerozoo"],
            "machine": machine(),
        }


def make_run(directory: Path, samples: int) -> None:
    """Responses of random words, which no packing can make small."""
    dice = random.Random(0)
    words = [f" {''.join(dice.choices('abcdefghijklmnopqrstuvwxyz', k=dice.randint(1, 9)))}" for _ in range(5000)]
    with Run.start(directory, "made-up", {"steps": samples // PER_STEP}, 0) as run:
        for step in range(1, samples // PER_STEP + 1):
            run.log(step, {"reward": dice.random(), "policy/kl": dice.random(), "response/length": 50.0})
            run.sample(make_row(step, number, dice, words) for number in range(PER_STEP))


def make_row(step: int, number: int, dice: random.Random, words: list[str]) -> dict[str, Any]:
    tokens = dice.choices(words, k=TOKENS)
    right = dice.random() < 0.5
    row = {"step": step, "phase": "train", "group": number // 8, "task": f"task-{dice.randrange(600)}"}
    row |= {"question": f"What is {dice.randrange(600)} + 5?", "gold": "7", "response": "".join(tokens)}
    row |= {"verdict": "right" if right else "wrong", "extracted": tokens[-1], "boxed": False, "reward": float(right)}
    row |= {"advantage": dice.gauss(0, 1), "length": TOKENS, "finish": "stop"}
    if number % 2:
        row |= {"tokens": tokens, "logprobs": [round(-dice.expovariate(1.0), 2) for _ in tokens]}
    return row


def pictures(runs: list[Path], images: Path) -> None:
    """report-run.png and report-samples.png of the first run, report-control.png of the first one with episodes, and
    report-zoo.png of this checkout."""
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, tab() as page:
        folder = Path(name)
        # In the checkout, so that the page's links are what a person would get.
        rows, notes = zoo_rows(RESULTS, Path("zoo.html"))
        shoot(page, write_zoo_page(rows, notes, folder / "zoo.html").path, "", images / "report-zoo.png")
        for index, run in enumerate(runs):
            path = write_run_page([read_record(run)], folder / f"{index}.html", RESULTS).path
            if (run / "samples.jsonl").read_text(errors="replace").find('"episode"') >= 0:
                shoot(page, path, "#episodes", images / "report-control.png")
            else:
                shoot(page, path, "#overview", images / "report-run.png")
                shoot(page, path, "#samples", images / "report-samples.png")


def shoot(page: Page, path: Path, anchor: str, picture: Path) -> None:
    page.goto("about:blank")
    page.goto(path.as_uri() + anchor)
    page.wait_for_selector("html[data-ready='yes']", state="attached")
    if anchor == "#samples":
        page.wait_for_selector(".detail .crumbs")
        page.get_by_label("Phase").select_option("train")
        page.get_by_role("button", name="Wrong").click()
        page.locator(".list [role=option]").nth(3).click()
    page.wait_for_timeout(300)  # the charts take their width from the page
    page.screenshot(path=picture)
    print(picture)


@contextmanager
def tab() -> Iterator[Page]:
    """A tab as wide as a laptop's window, in a browser of its own."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1366, "height": 820})
        browser.close()


if __name__ == "__main__":
    main()
