"""The file itself: what is embedded comes back, nothing in it can run, and pictures are pictures."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from zerozoo.runs.errors import UserError
from zerozoo.runs.records import read_record
from zerozoo.runs.report import (
    RUN_SCRIPTS,
    ZOO_SCRIPTS,
    asset,
    page,
    read_pictures,
    safe_json,
    write_run_page,
    write_text,
    write_zoo_page,
)
from zerozoo.runs.run import Run

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;<!-- \u2028\u2029 \ud800 'one' \"two\""
NASTY_NAME = "<img src=x onerror=alert(3)>"


class Elements(HTMLParser):
    """The start tags of a page, and the texts of its script and style elements, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inner: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inner.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.inner[-1] += data

    def blocks(self) -> list[tuple[dict[str, str | None], str]]:
        kept = [attributes for tag, attributes in self.tags if tag in ("script", "style")]
        return list(zip(kept, self.inner, strict=True))


def embedded(text: str, name: str = "data") -> Any:
    """The JSON of a data block."""
    (inner,) = [inner for attributes, inner in Elements(text).blocks() if attributes.get("id") == name]
    packed = f'id="{name}" data-packed="gzip"' in text
    return json.loads(gzip.decompress(base64.b64decode(inner)) if packed else inner)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / NASTY_NAME
    with Run.start(directory, "sums", {"steps": 1, "note": NASTY}, 0) as made:
        made.log(1, {"reward": 1.0, NASTY: 2.0})
        row = {"step": 1, "phase": "train", "question": NASTY, "response": NASTY, "reward": 1.0}
        made.sample([{**row, "tokens": [NASTY], "logprobs": [-1.0]}])
    return directory


@pytest.mark.parametrize("plain", [True, False])
def test_model_text_comes_back_and_is_no_markup(run, tmp_path, plain):
    found = write_run_page([read_record(run)], tmp_path / "page.html", tmp_path, plain=plain)
    text = found.path.read_text()
    assert found.size == len(text.encode())
    (entry,) = embedded(text)["runs"]
    assert entry["label"] == NASTY_NAME
    assert entry["config"]["note"] == NASTY
    assert embedded(text, entry["blocks"]["samples"])["columns"]["response"] == {"choices": [NASTY], "at": [0]}
    assert entry["metrics"]["series"][NASTY]["values"] == [2]
    assert embedded(text, entry["blocks"]["tokens"])["words"] == [NASTY]
    tags = [tag for tag, _ in Elements(text).tags]
    assert (tags.count("img"), tags.count("script"), tags.count("style")) == (0, 4, 1)
    for sign in ("\u2028", "\u2029"):
        assert sign not in text


def test_safe_json_has_no_sign_of_markup():
    text = safe_json({"key<": NASTY, "number": 1.5, "none": None})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"key<": NASTY, "number": 1.5, "none": None}
    assert safe_json(["é"]) == '["é"]'
    with pytest.raises(ValueError, match="Out of range"):
        safe_json([float("nan")])


@pytest.mark.parametrize("scripts", [RUN_SCRIPTS, ZOO_SCRIPTS])
def test_the_policy_names_the_very_script_and_style_and_forbids_the_network(scripts):
    text = page("A title", {"rows": []}, scripts)
    elements = Elements(text)
    (policy,) = [a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert (rules["base-uri"], rules["form-action"]) == ("'none'", "'none'")
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    running = [inner for attributes, inner in elements.blocks() if "type" not in attributes]
    style, script = running
    for rule, content in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg|arxiv\.org)", text)
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "import("):
        assert forbidden not in script


def test_the_parts_of_the_script_are_all_used():
    folder = Path(str(asset.__globals__["files"]("zerozoo.runs"))) / "report_page"
    assert {path.name for path in folder.glob("*.js")} == {*RUN_SCRIPTS, *ZOO_SCRIPTS}


def test_marks_of_the_template_in_the_data_are_not_filled_in():
    text = page("@@DATA@@", {"rows": ["@@SCRIPT@@"]}, ZOO_SCRIPTS, plain=True)
    assert "<title>@@DATA@@</title>" in text
    assert embedded(text) == {"rows": ["@@SCRIPT@@"]}


def test_pictures_are_embedded_figures_last(tmp_path):
    run = tmp_path / "run"
    for name in ("figures/a.png", "episode.gif", "strips/z.png", "checkpoints/x.png", "model/y.png", ".hidden/h.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"GIF89a" if name.endswith("gif") else PNG)
    (run / "broken.png").write_bytes(b"<script>")
    (run / "notes.txt").write_text("no picture")
    found, notes, room = read_pictures(run, 1000)
    assert [name for name, _ in found] == ["episode.gif", "strips/z.png", "figures/a.png"]
    assert found[0][1] == "data:image/gif;base64," + base64.b64encode(b"GIF89a").decode()
    assert notes == ["broken.png is not a picture and was left out"]
    assert room == 1000 - len(b"GIF89a") - 2 * len(PNG)
    found, notes, _ = read_pictures(run, len(b"GIF89a"))
    assert [name for name, _ in found] == ["episode.gif"]
    assert len(notes) == 3


def test_pictures_lie_in_blocks_that_the_runs_name(run, tmp_path):
    (run / "episode.gif").write_bytes(b"GIF89a")
    text = write_run_page([read_record(run)], tmp_path / "page.html", tmp_path).path.read_text()
    (entry,) = embedded(text)["runs"]
    assert entry["pictures"] == [{"name": "episode.gif", "block": "picture-0-0"}]
    (inner,) = [inner for attributes, inner in Elements(text).blocks() if attributes.get("id") == "picture-0-0"]
    assert inner == "data:image/gif;base64,R0lGODlh"


def test_samples_are_shared_by_the_runs(tmp_path):
    for seed in (0, 1):
        with Run.start(tmp_path / f"run-{seed}", "sums", {"steps": 1}, seed) as made:
            made.log(1, {"reward": 1.0})
            made.sample({"step": step, "response": str(step)} for step in range(8))
    records = [read_record(tmp_path / f"run-{seed}") for seed in (0, 1)]
    found = write_run_page(records, tmp_path / "page.html", tmp_path, samples=8)
    assert [entry["samples"]["count"] for entry in embedded(found.path.read_text())["runs"]] == [4, 4]
    assert found.notes[0] == ("run-0: of 8 responses 4 are shown, evenly spread over the run; --samples changes that")


def test_the_zoo_page_holds_its_rows(tmp_path):
    rows = [{"slug": NASTY, "status": "not run"}]
    found = write_zoo_page(rows, ["a note"], tmp_path / "deep" / "zoo.html", plain=True)
    data = embedded(found.path.read_text())
    assert (data["rows"], data["notes"], found.notes) == (rows, ["a note"], ("a note",))


def test_bad_places_and_no_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "page.html", "x")
    with pytest.raises(UserError, match="no run"):
        write_run_page([], tmp_path / "page.html", tmp_path)
    write_text(tmp_path / "page.html", "first")
    write_text(tmp_path / "page.html", "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "page.html"]
