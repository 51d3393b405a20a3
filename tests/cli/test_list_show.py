"""`zerozoo list` and `zerozoo show` on recipes made for the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import zerozoo.recipes
from zerozoo.cli.main import main
from zerozoo.cli.show import describe_fields, print_docstring
from zerozoo.cli.tables import console, duration, number, percent, size, strict

RECIPE = '''"""Sums made easy.

The idea in [brackets] {question} stays as it is.
"""
from dataclasses import dataclass, field

from zerozoo.runs.claims import Claim, difference_claim

PAPER = "1234.56789, Sums, 2030"


@dataclass(frozen=True)
class Base:
    model: str  # model to train
    seed: int = 0  # seed of everything


@dataclass(frozen=True)
class Config(Base):
    # how fast to learn,
    # per step
    learning_rate: float = 5e-7
    stop: tuple[str, ...] = ("Question", "# no comment")  # strings that end a response
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    """Sizes of
    the parts."""
    bare: str = ""


PRESETS = {"laptop": {"learning_rate": 1e-4, "model": "tiny base"}}


def train(config, run):
    return {}


CLAIM = Claim(
    statement="Soft beats [hard].",
    arms={"soft": {}, "hard": {"learning_rate": 0.0}},
    metric="accuracy",
    holds=difference_claim("soft", "hard"),
    seeds=(0, 1),
    budget="1 minute",
)
'''

BASELINE = '''"""A baseline without a paper."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    steps: int = 3


PRESETS = {}


def train(config, run):
    return {}
'''


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes in place of the package's own; the current folder is `tmp_path`."""
    root = tmp_path / "recipes"
    for family, name, text in (("invented", "easy_sums", RECIPE), ("invented_baselines", "plain", BASELINE)):
        (root / family).mkdir(parents=True)
        (root / family / "__init__.py").write_text("")
        (root / family / f"{name}.py").write_text(text)
    (root / "__init__.py").write_text("")
    monkeypatch.setattr(zerozoo.recipes, "__file__", str(root / "__init__.py"))
    monkeypatch.setattr(zerozoo.recipes, "__path__", [str(root)])
    monkeypatch.chdir(tmp_path)
    yield root
    for name in [name for name in sys.modules if name.startswith("zerozoo.recipes.invented")]:
        del sys.modules[name]


def store_result(text: str) -> None:
    path = Path("results/reproduce/easy-sums.json")
    path.parent.mkdir(parents=True)
    path.write_text(text)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    assert main(["list", "--json"]) == 0
    return {row["slug"]: row for row in json.loads(capsys.readouterr().out)}


def test_list_names_family_paper_and_that_a_claim_was_not_run(recipes, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "easy-sums" in line)
    assert row.split()[0] == "invented"
    assert "1234.56789, Sums, 2030" in row
    assert row.rstrip().endswith("not run")
    baseline = next(line for line in lines if "plain" in line)
    assert "A baseline without a paper." in baseline
    assert baseline.rstrip().endswith("no claim")
    assert "2 recipes, 0 with a tested claim" in lines[-1]


def test_list_shows_the_stored_verdict(recipes, capsys):
    store_result(json.dumps({"verdict": "FAILS"}))
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert next(line for line in output.splitlines() if "easy-sums" in line).rstrip().endswith("FAILS")
    assert "1 with a tested claim" in output
    rows = listed(capsys)
    assert rows["easy-sums"]["verdicts"] == {"main": "FAILS"}
    assert rows["plain"] == {
        "slug": "plain",
        "family": "invented_baselines",
        "paper": "",
        "summary": "A baseline without a paper.",
        "verdicts": {},
    }


def test_list_shows_the_verdicts_of_all_claims(recipes, capsys):
    """One of the main claim alone would hide that another one fails, or was never run."""
    text = RECIPE.replace("CLAIM = ", "MAIN = ") + "\nCLAIM = (MAIN, Claim(statement='more', name='second'))\n"
    path = recipes / "invented" / "easy_sums.py"
    path.write_text(text)
    others = [{"name": "second", "verdict": "FAILS"}]
    store_result(json.dumps({"name": "main", "verdict": "HOLDS", "claims": others}))
    assert listed(capsys)["easy-sums"]["verdicts"] == {"main": "HOLDS", "second": "FAILS"}
    assert main(["list"]) == 0
    assert "HOLDS, FAILS" in capsys.readouterr().out
    Path("results/reproduce/easy-sums.json").write_text(json.dumps({"name": "main", "verdict": "HOLDS"}))
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert "HOLDS, not run" in output
    assert "1 with a tested claim" in output


@pytest.mark.parametrize("text", ['{"verdict": ', "[1]"])
def test_list_survives_a_broken_result_file(recipes, capsys, text):
    store_result(text)
    assert main(["list"]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_show_prints_docstring_config_presets_and_commands(recipes, capsys):
    store_result(json.dumps({"name": "main", "verdict": "HOLDS", "reason": "soft - hard = +0.1"}))
    assert main(["show", "easy-sums"]) == 0
    output = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert "The idea in [brackets] {question} stays as it is." in output
    assert "seed 0 seed of everything" in lines
    assert "model required model to train" in lines
    assert "learning_rate 5e-07 how fast to learn, per step" in lines
    assert "stop ('Question', '# no comment') strings that end a response" in lines
    assert "sizes [1, 2] Sizes of the parts." in lines
    assert "bare ''" in lines
    assert "learning_rate=0.0001, model='tiny base'" in lines
    assert "Soft beats [hard]." in lines
    assert "2 arms (soft, hard) x 2 seeds, metric accuracy; 1 minute" in lines
    assert "Verdict: HOLDS: soft - hard = +0.1" in lines
    for command in ("train easy-sums", "train easy-sums --preset laptop", "reproduce easy-sums --smoke"):
        assert any(line.startswith(f"zerozoo {command}") for line in lines)


def test_docstrings_are_wrapped_anew(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    print_docstring(
        console(), "one two\nthree four five\n\n* an item that\n  goes on\n* next\nend\n\n    a = b      + c  + d + e"
    )
    assert capsys.readouterr().out.splitlines() == [
        "one two three four",
        "five",
        "",
        "* an item that goes",
        "  on",
        "* next",
        "end",
        "",
        "    a = b      + c  + d + e",
    ]


def test_show_of_a_baseline_offers_no_reproduction(recipes, capsys):
    assert main(["show", "plain"]) == 0
    output = capsys.readouterr().out
    assert "reproduce" not in output
    assert "Claim" not in output


def test_show_as_json(recipes, capsys):
    assert main(["show", "easy-sums", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    fields = {field["name"]: field for field in shown["config"]}
    assert list(fields) == ["model", "seed", "learning_rate", "stop", "sizes", "bare"]
    assert fields["model"] == {
        "name": "model",
        "type": "str",
        "default": None,
        "required": True,
        "help": "model to train",
    }
    assert fields["stop"]["default"] == ["Question", "# no comment"]
    assert fields["stop"]["type"] == "tuple[str, ...]"
    assert shown["presets"] == {"laptop": {"learning_rate": 1e-4, "model": "tiny base"}}
    assert shown["claims"][0]["arms"] == {"soft": {}, "hard": {"learning_rate": 0.0}}
    assert shown["result"] is None
    assert "zerozoo train easy-sums --preset laptop" in shown["commands"]


def test_unknown_recipe_is_one_sentence_and_exit_code_2(recipes, capsys):
    assert main(["show", "easy-sum"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: Unknown recipe 'easy-sum'; did you mean 'easy-sums'?")


def test_fields_of_a_class_without_source_have_no_comments():
    import dataclasses

    made = dataclasses.make_dataclass("Made", [("steps", int, 3)])
    made.__module__ = "nowhere"
    (field,) = describe_fields(made)
    assert (field.name, field.default, field.help) == ("steps", 3, "")


def test_every_recipe_of_the_package_can_be_shown(capsys):
    assert main(["list", "--json"]) == 0
    for row in json.loads(capsys.readouterr().out):
        assert main(["show", row["slug"], "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["description"], f"{row['slug']} has no docstring"
        undocumented = [field["name"] for field in shown["config"] if not field["help"]]
        assert not undocumented, f"{row['slug']}: fields without a comment"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.0, "3"),
        (0.01234, "0.0123"),
        (123.456, "123"),
        (1.2e-5, "1.2e-05"),
        (float("nan"), "-"),
        (None, "-"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_other_formats():
    assert percent(0.6314) == "63.1"
    assert [duration(value) for value in (2.04, 59.4, 185, 7800)] == ["2.0 s", "59 s", "3 min 05 s", "2 h 10 min"]
    assert [size(value) for value in (999, 3200, 250_000, 1.5e9, 2e12)] == [
        "999 B",
        "3.2 kB",
        "250 kB",
        "1.5 GB",
        "2.0 TB",
    ]
    assert strict({"a": (float("inf"), Path("x"), True)}) == {"a": [None, "x", True]}
