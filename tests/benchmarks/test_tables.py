"""The page on speed shows what the results files hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import tables


def test_the_page_shows_the_results() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(page) == page, "run: python benchmarks/tables.py"


def test_rows_are_worked_out_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {
        "zerozoo": {"seconds": 2.0, "range": [1.0, 4.0], "tokens_per_second": 512.0, "peak_mb": 1500},
        "zerozoo-int8": {"seconds": 1.0, "range": [1.0, 1.0], "tokens_per_second": 1024.0, "peak_mb": 1000},
        "transformers": {"seconds": 4.0, "range": [4.0, 5.0], "tokens_per_second": 256.0, "peak_mb": 3000},
    }
    found = {name: {"model": "m", "arms": arms} for name in ("rollout 32 x 32", "update 96 x (14 + 12)")}
    found["rollout 16 x (16 + 1000)"] = {"model": "tiny", "arms": {"zerozoo": arms["zerozoo"]}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "bench-language.json").write_text(json.dumps(found))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    row = "| 32 x 32 | 512 (256 to 1,024) | 1,024 (1,024 to 1,024) | 256 (205 to 256) | 2.0 | 4.0 |"
    assert tables.rollouts().splitlines()[-1] == row
    row = "| 96 x (14 + 12) | 2.0 (1.0 to 4.0) | 1.0 (1.0 to 1.0) | 4.0 (4.0 to 5.0) | 2.0 | 4.0 |"
    assert tables.updates().splitlines()[-1] == row
    assert tables.growth().splitlines()[-1] == "| rollout | 1,000 | 2.00 (1.00 to 4.00) | 2.00 | 1,500 |"
    assert tables.memory().splitlines()[-1] == "| update 96 x (14 + 12) | 1.5 | 1.0 | 3.0 | 0.50 |"
    del arms["zerozoo-int8"]  # a machine without units for it
    arms["vllm"] = {"seconds": 3.0, "range": [3.0, 3.0], "tokens_per_second": 341.0, "peak_mb": 3000}
    found["update 96 x (14 + 12)"]["arms"] = {name: arms[name] for name in ("zerozoo", "transformers")}
    (tmp_path / "results" / "bench-language.json").write_text(json.dumps(found))
    header, _, row = tables.rollouts().splitlines()
    assert header == "| rows x new tokens | zerozoo | transformers | vLLM | to transformers | to vLLM |"
    assert row == "| 32 x 32 | 512 (256 to 1,024) | 256 (205 to 256) | 341 (341 to 341) | 2.0 | 1.5 |"
    assert tables.updates().splitlines()[-1] == "| 96 x (14 + 12) | 2.0 (1.0 to 4.0) | 4.0 (4.0 to 5.0) | 2.0 |"
    assert tables.memory().splitlines()[-1] == "| update 96 x (14 + 12) | 1.5 | 3.0 |  | 0.50 |"


def test_a_place_of_an_unknown_table_is_refused() -> None:
    assert tables.filled("nothing") == "nothing"
    with pytest.raises(ValueError, match="unknown tables: .'speeds'"):
        tables.filled("<!-- speeds -->\nold\n<!-- end -->")
