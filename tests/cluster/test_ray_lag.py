"""Responses written ahead of their step by rollout workers: the numbers of the loop that writes them itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zerozoo.cli.registry import load_recipe
from zerozoo.distributed.ray_engine import RayEngine
from zerozoo.language.engine import use_engine
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.runs.run import Run

RECIPE = "simplerl-zoo"
STEPS = 5
MEASURED_APART = ("time", "seconds/", "tokens/drawn", "update/padded")


@pytest.fixture(scope="module")
def config(digits_model: str) -> Any:
    return load_recipe(RECIPE).make_config(
        {
            **{"model": digits_model, "data": "arithmetic", "level": "one-digit", "heldout_size": 6},
            **{"max_new_tokens": 6, "prompts_per_step": 4, "samples_per_prompt": 8, "updates_per_step": 2},
            **{"kl_coefficient": 0.01, "steps": STEPS, "learning_rate": 1e-3, "samples_logged": 32},
            **{"checkpoint_every": 2, "evaluate_every": 2, "sampler": "native"},
        }
    )


@pytest.fixture
def engine(ray_connection: Any) -> Iterator[RayEngine]:
    engine = RayEngine(2)
    yield engine
    engine.close()


def train(config: Any, directory: Path, engine: RayEngine | None) -> tuple[list[dict[str, Any]], list[Any], Any]:
    with use_engine(engine), Run.start(directory, RECIPE, dataclasses.asdict(config), config.seed) as run:
        load_recipe(RECIPE).train(config, run)
        samples = [(row["step"], row["task"], row["response"]) for row in run.samples()]
        return run.history(), samples, load_file(directory / "model" / "model.safetensors")


@pytest.mark.parametrize("fields", [{"max_lag": 2}, {"max_lag": 2, "slice_tokens": 2}], ids=["whole", "slices"])
def test_workers_write_ahead_what_the_learner_would(
    engine: RayEngine, config: Any, fields: dict[str, int], tmp_path: Path
) -> None:
    """The weights that write a token do not depend on who is fast. Metrics, responses and weights agree to 1e-5."""
    lagged = dataclasses.replace(config, **fields)
    rows, samples, weights = train(lagged, tmp_path / "ray", engine)
    wanted_rows, wanted_samples, wanted_weights = train(lagged, tmp_path / "alone", None)
    assert samples == wanted_samples
    assert [row["step"] for row in rows] == [row["step"] for row in wanted_rows] == list(range(STEPS + 1))
    for row, wanted in zip(rows, wanted_rows, strict=True):
        names = {name for name in row if not name.startswith(MEASURED_APART)}
        assert names == {name for name in wanted if not name.startswith(MEASURED_APART)}
        for name in sorted(names):
            assert row[name] == pytest.approx(wanted[name], abs=1e-5), (row["step"], name)
    assert [row["staleness/highest"] for row in rows[1:]] == [0, 1, 2, 2, 2]
    assert (max(row["staleness/mixed_rows"] for row in rows[1:]) > 0) == ("slice_tokens" in fields)
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in rows)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, wanted_weights[name], atol=1e-5, rtol=0)


def test_a_run_that_was_killed_with_work_under_way_goes_on_with_the_same_tasks(
    engine: RayEngine, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps ahead are lost with the learner; the workers stay."""

    class Killed(BaseException):
        """Ends a run from inside as a kill does: nothing catches it."""

    lagged = dataclasses.replace(config, max_lag=2)
    unbroken = train(lagged, tmp_path / "unbroken", engine)[1]
    credit = ZeroRL._credit

    def dying(loop: ZeroRL, rollouts: Any) -> Any:
        if rollouts.step == 4:
            raise Killed
        return credit(loop, rollouts)

    with monkeypatch.context() as patch:
        patch.setattr(ZeroRL, "_credit", dying)
        with pytest.raises(Killed):
            train(lagged, tmp_path / "run", engine)
    rows, samples, _ = train(lagged, tmp_path / "run", engine)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    asked = [[(step, task) for step, task, _ in one if step] for one in (samples, unbroken)]
    assert asked[0] == asked[1]
    state = [json.loads(path.read_text()) for path in sorted((tmp_path / "run" / "checkpoints").glob("*/state.json"))]
    wanted = sorted((tmp_path / "unbroken" / "checkpoints").glob("*/state.json"))
    assert state == [json.loads(path.read_text()) for path in wanted]
