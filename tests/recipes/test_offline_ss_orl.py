"""SS-ORL: windows and proxies by hand, no peeking at hidden actions, the model's best parameters, whole runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zerozoo.cli.registry import load_recipe
from zerozoo.control.episodes import Episodes
from zerozoo.control.inverse import InverseDynamics, fit_inverse_dynamics, windows
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.offline import OfflineLoop
from zerozoo.recipes.offline import ss_orl
from zerozoo.recipes.offline.ss_orl import (
    CLAIM,
    PRESETS,
    Config,
    Recordings,
    make_recordings,
    proxy_errors,
    with_proxies,
)
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.run import Run

SMOKE = PRESETS["smoke"]
TINY = {**SMOKE, "episodes": 30, "steps": 4, "evaluate_every": 4, "evaluation_episodes": 2, "inverse_steps": 10}


def recordings(seed: int = 0, **changes: Any) -> Recordings:
    return make_recordings(Config(**{**SMOKE, **changes}), np.random.Generator(np.random.PCG64(seed)))


def fit(made: Recordings, normaliser: Normaliser, config: Config, run: Run) -> InverseDynamics:
    return fit_inverse_dynamics(made.hidden.select(made.labelled), normaliser, config, run)


def small() -> Recordings:
    """Three episodes of 2, 1 and 1 steps; only the last one is labelled."""
    episodes = [
        {"obs": [[1.0], [2.0], [3.0]], "action": [[0.1], [0.2]], "reward": [1.0, 2.0]},
        {"obs": [[4.0], [5.0]], "action": [[0.3]], "reward": [0.0]},
        {"obs": [[6.0], [7.0]], "action": [[0.4]], "reward": [-1.0]},
    ]
    arrays = [{name: np.array(values, dtype=np.float32) for name, values in episode.items()} for episode in episodes]
    truth, labelled = Episodes.from_list(arrays), np.array([False, False, True])
    known = labelled[truth.episode_of]
    hidden = truth.replace(action=truth.action * known[:, None], extras={"is_labelled": known})
    return Recordings(truth, hidden, labelled)


# --- the parts


def test_the_defaults_are_the_papers() -> None:
    """Card, Defaults."""
    paper = {
        "label_share": 0.1,
        "label_pool": 0.5,
        "history": 1,
        "inverse_hidden": (1024, 1024),
        "inverse_dropout": 0.1,
        "inverse_learning_rate": 1e-4,
        "inverse_batch_size": 1024,
        "inverse_heldout": 0.1,
        "inverse_evaluate_every": 10,
        "inverse_steps": 100_000,
        "steps": 200_000,
        "batch_size": 256,
        "evaluation_episodes": 30,
        "gamma": 0.99,
        "tau": 0.005,
        "target_noise": 0.2,
        "noise_clip": 0.5,
        "alpha": 2.5,
        "learning_rate": 3e-4,
        "hidden": (256, 256),
    }
    assert {name: getattr(Config(), name) for name in paper} == paper
    assert Config(**PRESETS["paper"]) == Config()


def test_windows_are_standardised_then_padded_and_end_at_the_true_successor() -> None:
    normaliser = Normaliser((1,)).fit(np.array([[1.0], [5.0]]))  # mean 3, deviation 2
    data = small().truth
    z = {value: (value - 3) / 2 for value in (1, 2, 3, 4, 5, 6, 7)}
    expected = {
        0: [[z[1], z[2]], [z[2], z[3]], [z[4], z[5]], [z[6], z[7]]],
        1: [[0, z[1], z[2]], [z[1], z[2], z[3]], [0, z[4], z[5]], [0, z[6], z[7]]],
        2: [[0, 0, z[1], z[2]], [0, z[1], z[2], z[3]], [0, 0, z[4], z[5]], [0, 0, z[6], z[7]]],
    }
    for history, rows in expected.items():
        torch.testing.assert_close(windows(data, history, normaliser), torch.tensor(rows, dtype=torch.float32))


def test_windows_of_more_dimensions_put_state_after_state() -> None:
    data = Episodes(np.arange(6.0).reshape(3, 2), np.zeros((2, 1)), np.zeros(2), [False] * 2, [False, True], [2])
    made = windows(data, 1, Normaliser((2,)))
    assert made.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_true_labels_stay_and_the_others_get_proxies() -> None:
    union = with_proxies(small(), np.full((4, 1), 0.9, dtype=np.float32))
    np.testing.assert_allclose(union.action[:, 0], [0.9, 0.9, 0.9, 0.4])
    assert union.extras["is_labelled"].tolist() == [False, False, False, True]
    np.testing.assert_array_equal(union.reward, small().truth.reward)


def test_errors_of_proxies() -> None:
    """Unlabelled returns are 3 and 0: the better half is the first episode."""
    errors = proxy_errors(small(), np.array([[0.1], [0.4], [0.0], [9.0]], dtype=np.float32))
    variance = np.var([0.1, 0.2, 0.3])
    assert errors == {
        "proxy/error": pytest.approx((0 + 0.04 + 0.09) / 3, rel=1e-5),
        "proxy/error_high": pytest.approx(0.02, rel=1e-5),
        "proxy/log_error_high": pytest.approx(math.log(0.02), rel=1e-5),
        "proxy/error_of_variance": pytest.approx((0.13 / 3) / variance, rel=1e-4),
    }


def test_labels_are_drawn_from_the_lowest_returns() -> None:
    made = recordings(episodes=40)
    returns = made.truth.returns()
    assert made.labelled.sum() == 4
    assert returns[made.labelled].max() <= np.median(returns)
    anywhere = recordings(episodes=40, label_pool=1.0, label_share=0.5)
    assert anywhere.labelled.sum() == 20
    assert returns[anywhere.labelled].max() > np.median(returns)


def test_hidden_actions_are_not_there() -> None:
    made = recordings(episodes=40)
    known = made.labelled[made.truth.episode_of]
    assert not made.hidden.action[~known].any()
    np.testing.assert_array_equal(made.hidden.action[known], made.truth.action[known])
    np.testing.assert_array_equal(made.hidden.obs, made.truth.obs)


def test_the_model_learns_nothing_from_hidden_actions(tmp_path: Path) -> None:
    config = Config(**TINY)
    made = recordings(episodes=30)
    normaliser = Normaliser((3,)).fit(made.truth.obs)
    known = made.hidden.extras["is_labelled"][:, None]
    other = dataclasses.replace(made, hidden=made.hidden.replace(action=np.where(known, made.hidden.action, 0.5)))
    models = [fit(one, normaliser, config, Run(tmp_path / str(n))) for n, one in enumerate((made, other))]
    first, second = (model.policy.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_explains_the_unlabelled_actions(tmp_path: Path) -> None:
    """The smoke of the card: after 300 updates the error is below half the variance of the actions."""
    changes = {"inverse_hidden": (256, 256), "inverse_batch_size": 256, "inverse_learning_rate": 3e-3}
    config = Config(**{**SMOKE, **changes, "inverse_steps": 300})
    made = recordings()
    normaliser = Normaliser((3,)).fit(made.truth.obs)
    model = fit(made, normaliser, config, Run(tmp_path))
    assert not model.training
    proxy = model.policy.mode(windows(made.hidden, 1, normaliser)).detach().numpy()
    assert proxy_errors(made, proxy)["proxy/error_of_variance"] < 0.5


def test_the_best_parameters_are_put_back(tmp_path: Path) -> None:
    """A rate that destroys the model: what was kept is as good as the best that was seen, and better than the last."""
    made = recordings(episodes=40)
    normaliser = Normaliser((3,)).fit(made.truth.obs)
    changes = {"inverse_evaluate_every": 1, "inverse_learning_rate": 0.3, "inverse_heldout": 0.25}

    def heldout_loss(steps: int, every: int) -> float:
        config = Config(**{**SMOKE, **changes, "inverse_steps": steps, "inverse_evaluate_every": every})
        run = Run(tmp_path / f"{steps}-{every}")
        model = fit(made, normaliser, config, run)
        order = Run(tmp_path / "x").streams.numpy("inverse").permutation(4)
        heldout = made.hidden.select(made.labelled).select(order[:1])
        inputs, action = windows(heldout, 1, normaliser), torch.from_numpy(heldout.action)
        with torch.no_grad():
            return -float(model.policy.log_prob(inputs, action).mean())

    last = [heldout_loss(steps, 1_000) for steps in range(1, 9)]  # looked at once, at the end
    assert heldout_loss(8, 1) == min(last) < last[-1]


def test_a_model_that_diverges_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="inverse_learning_rate"):
        ss_orl.train(Config(**{**TINY, "inverse_learning_rate": math.inf}), Run(tmp_path))


# --- whole runs


def train(directory: Path, **changes: Any) -> tuple[dict[str, float], Run]:
    run = Run(directory, seed=0)
    return ss_orl.train(Config(**{**TINY, **changes}), run), run


def outcome(directory: Path, **changes: Any) -> dict[str, Any]:
    """What a run left: weights, evaluation and errors."""
    metrics, run = train(directory, **changes)
    checkpoint = run.load()
    assert checkpoint is not None
    tensors = {name: value.tolist() for name, value in checkpoint.tensors.items() if name.startswith("agent/module")}
    return {**tensors, **{name: value for name, value in metrics.items() if name.startswith(("evaluation", "proxy"))}}


@pytest.mark.parametrize("arm", CLAIM[0].arms)
def test_every_arm_trains(tmp_path: Path, arm: str) -> None:
    metrics, run = train(tmp_path / "run", **CLAIM[0].arms[arm])
    assert all(math.isfinite(value) for value in metrics.values())
    assert "evaluation/score" in metrics
    assert ("proxy/error" in metrics) == arm.startswith("proxy")
    assert {row["phase"] for row in run.samples()} == {"evaluation"}


@pytest.mark.parametrize("arm", CLAIM[1].arms)
def test_the_history_arms_train_no_policy(tmp_path: Path, arm: str) -> None:
    metrics, run = train(tmp_path / "run", steps=0, **CLAIM[1].arms[arm])
    assert math.isfinite(metrics["proxy/log_error_high"])
    assert [row["step"] for row in run.history()] == [0]


def test_all_arms_see_states_of_the_same_scale(tmp_path: Path) -> None:
    means = []
    for actions in ("proxy", "true", "none"):
        _, run = train(tmp_path / actions, actions=actions)
        checkpoint = run.load()
        assert checkpoint is not None
        means.append(checkpoint.tensors["agent/module/normaliser.mean"])
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[0], means[2])


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"steps": 12, "checkpoint_every": 4}
    whole = outcome(tmp_path / "whole", **changes)
    plain = OfflineLoop.advance

    def killed(loop: OfflineLoop, step: int) -> int:
        if step == 6:
            raise RuntimeError("killed")
        return plain(loop, step)

    monkeypatch.setattr(OfflineLoop, "advance", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "killed", **changes)
    monkeypatch.undo()
    assert outcome(tmp_path / "killed", **changes) == whole


CHANGES: dict[str, Any] = {
    "episodes": 40,
    "sticky": 0.9,
    "label_share": 0.3,
    "label_pool": 1.0,
    "actions": "true",
    "history": 0,
    "inverse_hidden": (16, 16),
    "inverse_dropout": 0.5,
    "inverse_steps": 5,
    "inverse_batch_size": 32,
    "inverse_learning_rate": 1e-4,
    "inverse_evaluate_every": 3,
    "inverse_heldout": 0.5,
    "hidden": (16, 8),
    "gamma": 0.5,
    "tau": 0.5,
    "alpha": 0.1,
    "target_noise": 1.0,
    "noise_clip": 0.01,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "evaluation_episodes": 3,
}


def test_every_field_has_an_effect(tmp_path: Path) -> None:
    # A rate at which the held-out loss goes up and down, so that it matters when it is looked at.
    context = {"inverse_learning_rate": 0.1}
    base = outcome(tmp_path / "base", **context)
    for name, value in CHANGES.items():
        assert outcome(tmp_path / name, **{**context, name: value}) != base, name
    assert outcome(tmp_path / "again", **context) == base
    inherited = {"seed", "steps", "evaluate_every", "log_every", "checkpoint_every", "observation_keys"}
    assert {field.name for field in dataclasses.fields(Config)} == {*CHANGES, *inherited}


def test_one_labelled_episode_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two labelled episodes"):
        train(tmp_path / "run", episodes=10)


def test_unknown_actions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="actions must be proxy, true or none, not 'guessed'"):
        train(tmp_path / "run", actions="guessed")


def test_the_claims_have_valid_arms_that_differ() -> None:
    assert load_recipe("ss-orl").claims == CLAIM
    for claim in CLAIM:
        configs = [Config(**claim.overrides(arm, smoke)) for arm in claim.arms for smoke in (False, True)]
        assert len(set(configs)) == 2 * len(claim.arms)
