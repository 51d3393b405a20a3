"""`zerozoo reproduce SLUG --smoke` for every recipe with a claim: all arms train, and their numbers are put together.

The cells run in this process, for most of a smoke's time is the start of processes; then the command finds them done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zerozoo.cli import cell as cell_process
from zerozoo.cli.main import main
from zerozoo.cli.registry import catalogue, load_recipe
from zerozoo.runs.cells import claim_cells

SLUGS = sorted(entry.slug for entry in catalogue() if entry.family != "baselines")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("slug", SLUGS)
def test_the_smoke_of_every_claim_runs(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(slug)
    for claim in recipe.claims:
        for cell in claim_cells(slug, claim, Path("runs"), smoke=True):
            words = cell_process.cell_command(cell)
            cell_process._run_cell(cell_process._parse(words[words.index("zerozoo.cli.cell") + 1 :]))
    capsys.readouterr()
    names = [claim.name for claim in recipe.claims]
    for name in names:
        assert main(["reproduce", slug, "--smoke", "--directory", "runs", "--json", "--only", name]) == 0
        entry = json.loads(capsys.readouterr().out)
        claim = cell_process.find_claim(slug, recipe.claims, name)
        assert (entry["name"], entry["metric"], list(entry["arms"])) == (name, claim.metric, list(claim.arms))
        assert entry["verdict"] is None
        values = [value for row in entry["arms"].values() for value in row.values()]
        assert all(isinstance(value, float) and math.isfinite(value) for value in values)
    assert not Path("results").exists()


def test_a_config_without_a_limit_is_kept_as_text(tmp_path: Path) -> None:
    """JSON has no number for it: the cell would be lost after its training."""
    claim = load_recipe("oreal").claims[0]
    cell = claim_cells("oreal", claim, tmp_path, smoke=True)[0]
    words = cell_process.cell_command(cell)
    cell_process._run_cell(cell_process._parse(words[words.index("zerozoo.cli.cell") + 1 :]))
    kept = json.loads((cell.directory / "cell.json").read_text())
    assert kept["config"]["clip_high"] == "inf"
    assert kept["config"]["clip_low"] == 1.0
