"""Control traps 3 (data side), 6, 7, 11 to 15 and 22 (loading side): recorded experience, replay and normaliser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zerozoo.control.episodes import Episode, Episodes, Recorder
from zerozoo.control.files import ACTION_BOUNDS, read_npz, write_npz
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.replay import Replay
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, goals, pairs, sequences, skills, transitions
from zerozoo.runs.errors import UserError

GAMMA = 0.9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chain(*ends: bool, length: int = 4, step: float = 1.0) -> Episodes:
    """Episode e observes 100 e, 100 e + 1, ...; its reward is what it observes; ends: whether it is terminated."""
    items = []
    for number, terminated in enumerate(ends):
        obs = 100 * number + step * np.arange(length + 1.0)[:, None]
        items.append(Episode(obs, np.tile(obs[:-1] / 1000, 2), obs[:-1, 0], terminated, not terminated))
    return Episodes.from_list(items)


def at_ends(batch: Batch, data: Episodes) -> torch.Tensor:
    """(B,) bool, the row is an episode's last step."""
    return torch.isin(batch.index, torch.from_numpy(data.last))


# --- 3


def test_trap_03_the_target_looks_at_the_true_successor() -> None:
    """Mistake: the value before the step bootstraps. Rule: next_obs is what came after, at a truncated end too."""
    data = chain(False, True)
    for n_step in (1, 3):
        batch = transitions(GAMMA, n_step)(data).sample(200, generator())
        left = torch.from_numpy(data.last[data.episode_of[batch.index.numpy()]]) - batch.index + 1
        taken = left.clamp(max=n_step)
        assert torch.equal(batch.next_obs[:, 0], batch.obs[:, 0] + taken)
    truncated_end = batch.next_obs[:, 0] == 4
    assert truncated_end.any()
    assert (batch.discount[truncated_end] > 0).all()


def test_trap_03_terminated_wins_where_both_flags_are_true() -> None:
    """Mistake: a step that is terminated and truncated bootstraps. Rule: terminated wins, and its discount is 0."""
    obs, action, yes = np.arange(3.0)[:, None], np.zeros((2, 1)), np.array([True])
    made = Episodes.from_list([Episode(obs, action, np.zeros(2), terminated=True, truncated=True)])
    recorder = Recorder()
    recorder.add(obs[:1], action[:1], np.zeros(1), yes, yes, obs[1:2])
    for data in (made, recorder.episodes()):
        assert (data.terminated[-1], data.truncated[-1]) == (True, False)
        assert transitions(GAMMA)(data).discount[-1] == 0  # type: ignore[attr-defined]


# --- 6


def test_trap_06_an_episode_has_one_observation_more_than_steps() -> None:
    """Mistake: T states make T - 1 transitions. Rule: T + 1 observations make T steps, and other shapes are refused."""
    data = chain(True, length=4)
    assert (len(data.obs), len(data)) == (5, 4)
    assert set(transitions()(data).sample(200, generator()).index.tolist()) == {0, 1, 2, 3}
    with pytest.raises(UserError, match="one observation more than actions"):
        Episodes.from_list([Episode(np.zeros((4, 1)), np.zeros((4, 1)), np.zeros(4))])
    with pytest.raises(UserError, match="one more than steps"):
        data.replace(obs=data.obs[:-1])


def test_trap_06_the_last_step_counts_in_sums() -> None:
    """Mistake: the last step's advantage is 0. Rule: its reward is in every n-step sum and return-to-go reaching it."""
    data = chain(True, length=4)
    assert data.returns_to_go().tolist() == [6, 6, 5, 3]
    assert transitions(1.0, n_step=9)(data).reward.tolist() == [6, 6, 5, 3]  # type: ignore[attr-defined]
    batch = sequences(4)(data).sample(50, generator())
    assert batch.return_to_go[batch.mask].min() == 3


# --- 7


def test_trap_07_one_scale_for_all_environment_copies() -> None:
    """Mistake: every copy has its own statistics. Rule: one normaliser sees the rows of all copies."""
    normaliser = Normaliser((1,))
    normaliser.update(np.array([[0.0], [10.0]]))  # two copies in different places
    assert normaliser.mean.tolist() == [5.0]
    assert (normaliser(torch.tensor([[0.0]])) < normaliser(torch.tensor([[10.0]]))).all()


def test_trap_07_the_scale_is_saved_with_the_policy_and_frozen_in_evaluation() -> None:
    """Mistake: rebuilt, updated or lost at evaluation. Rule: it is in the state_dict, and eval() freezes it."""

    def build() -> torch.nn.Sequential:
        torch_policy = torch.nn.Linear(3, 2)
        torch.nn.init.ones_(torch_policy.weight)
        torch.nn.init.zeros_(torch_policy.bias)
        return torch.nn.Sequential(Normaliser((3,)), torch_policy)

    policy, loaded = build(), build()
    policy[0].fit(np.random.default_rng(0).normal(5, 3, (100, 3)))
    loaded.load_state_dict(policy.state_dict())
    x = torch.ones(4, 3)
    assert torch.equal(loaded(x), policy(x))
    loaded.eval()
    loaded[0].update(np.full((50, 3), 1e6))
    assert torch.equal(loaded(x), policy(x))


# --- 11


def test_trap_11_ends_are_what_was_recorded(tmp_path: Path) -> None:
    """Mistake: a jump larger than 1e-6 ends an episode. Rule: ends are kept from collection, and tell nothing else."""
    tiny_steps = chain(True, False, step=0.0)  # a robot that stands still
    wide_steps = chain(True, False, step=25.0)  # the second episode begins where the first ends
    for name, data in (("tiny", tiny_steps), ("wide", wide_steps)):
        back = read_npz(write_npz(tmp_path / f"{name}.npz", data))
        assert back.lengths.tolist() == [4, 4]
        assert back.terminated.tolist() == data.terminated.tolist()
        assert back.truncated.tolist() == data.truncated.tolist()
    assert wide_steps.obs[4, 0] == wide_steps.obs[5, 0]


def test_trap_11_a_file_whose_ends_are_missing_is_refused(tmp_path: Path) -> None:
    """Mistake: ends are guessed from the observations. Rule: a jump without a recorded end is an error, not an end."""
    path = write_npz(tmp_path / "data.npz", chain(False, False))
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "timeouts": np.zeros(8, bool)})
    with pytest.raises(UserError, match="next_observations of row 3 is not the observation of row 4"):
        read_npz(path)
    del arrays["timeouts"]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="field timeouts is missing"):
        read_npz(path)


# --- 12


def test_trap_12_no_index_reaches_the_next_episode() -> None:
    """Mistake: an end's next_obs is the next episode's first. Rule: no field of any view leaves the episode."""
    data = chain(True, False, True)
    views = [transitions(), transitions(n_step=3, next_action=True), goals(0.9, 0.3, 0.7, 0.0)]
    for view in [*views, sequences(3), skills(3), pairs(3)]:
        batch = view(data).sample(300, generator())
        own = batch.obs // 100
        mask = torch.ones_like(own, dtype=torch.bool) if batch.mask is None else batch.mask[..., None]
        for name in ("next_obs", "goal", "action", "next_action"):
            values = getattr(batch, name)
            if values is not None:
                scale = 1000 if "action" in name else 1  # actions tell what was observed
                assert torch.equal((values[..., :1] * scale + 1e-3)[mask] // 100, own[mask]), (view, name)


def test_trap_12_timeouts_are_not_dropped_on_the_quiet(tmp_path: Path) -> None:
    """Mistake: every row that timed out is left out. Rule: it is drawn with its true successor, and survives files."""
    data = chain(False, False)
    for episodes in (data, read_npz(write_npz(tmp_path / "data.npz", data))):
        batch = transitions(GAMMA)(episodes).sample(300, generator())
        ends = at_ends(batch, episodes)
        assert set(batch.obs[ends].flatten().tolist()) == {3.0, 103.0}
        assert set(batch.next_obs[ends].flatten().tolist()) == {4.0, 104.0}
        assert torch.equal(batch.discount, torch.full((300,), GAMMA))


# --- 13


@pytest.mark.parametrize("n_step", [1, 2, 7])
def test_trap_13_next_actions_do_not_cross_the_boundary(n_step: int) -> None:
    """Mistake: the next episode's first action enters a target. Rule: index views with a validity mask."""
    data = chain(True, False)
    batch = transitions(GAMMA, n_step, next_action=True)(data).sample(300, generator())
    at_final_obs = batch.next_obs[:, 0] % 100 == 4  # nothing was done there
    assert torch.equal(batch.next_action_valid, ~at_final_obs)
    assert at_final_obs.any()
    valid = batch.next_action_valid
    assert torch.equal(batch.next_action[valid][:, 0], batch.next_obs[valid][:, 0] / 1000)
    assert torch.equal((batch.next_action[:, 0] * 1000 + 1e-3) // 100, batch.obs[:, 0] // 100)


# --- 14


def test_trap_14_the_last_observation_is_kept_and_not_zeros() -> None:
    """Mistake: a terminal's next_obs is zeros, a truncated end is dropped. Rule: the true observation, both times."""
    data = chain(True, False)
    batch = transitions(GAMMA)(data).sample(300, generator())
    ends = at_ends(batch, data)
    assert set(batch.next_obs[ends].flatten().tolist()) == {4.0, 104.0}
    ended = (batch.obs[:, 0] == 3) | (batch.obs[:, 0] == 103)
    assert torch.equal(ends, ended)
    assert torch.equal(batch.discount, torch.where(batch.obs[:, 0] == 3, 0.0, GAMMA))


def test_trap_14_an_unknown_successor_is_never_invented(tmp_path: Path) -> None:
    """Mistake: zeros stand in for it. Rule: a timed-out step without a successor is dropped, a true end refused."""
    for ends, name in (((False, False), "timeouts"), ((True, False), "ends")):
        arrays = dict(np.load(write_npz(tmp_path / f"{name}.npz", chain(*ends))))
        del arrays["next_observations"]
        np.savez(tmp_path / f"{name}.npz", **arrays)
    data = read_npz(tmp_path / "timeouts.npz")
    assert data.obs[:, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert data.reward.tolist() == [0, 1, 2, 100, 101, 102]
    with pytest.raises(UserError, match="what came after is unknown"):
        read_npz(tmp_path / "ends.npz")


# --- 15


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 25])
def test_trap_15_the_ring_fills_its_last_slot(batch_size: int) -> None:
    """Mistake: size = max(pointer, size) never reaches capacity. Rule: size = min(added, capacity), all slots drawn."""
    replay = Replay(Spec((1,), 1, False), capacity=10)
    for first in range(0, 50, batch_size):
        number = np.arange(first, first + batch_size, dtype=np.float32)
        column = number[:, None]
        replay.add(column, column * 0, number, column + 1, np.zeros(batch_size, bool))
        assert len(replay) == min(first + batch_size, 10)
        batch = replay.sample(400, generator())
        assert set(batch.index.tolist()) == set(range(len(replay)))
        assert set(batch.obs[:, 0].tolist()) == set(np.arange(first + batch_size, dtype=float)[-10:])


# --- 22


def test_trap_22_loaded_actions_have_a_finite_squashed_log_density(tmp_path: Path) -> None:
    """Mistake: actions at +-1 give atanh = inf. Rule: loading clips them to 1 - 1e-5, whatever way they come in."""
    action = np.array([[1.0, -1.0], [-1.0, 0.5]])
    made = Episodes.from_list([Episode(np.zeros((3, 1)), action, np.zeros(2), terminated=True)])
    path = write_npz(tmp_path / "data.npz", made)
    np.savez(path, **{**np.load(path), "actions": action})
    unmarked = {name: values for name, values in np.load(path).items() if name != ACTION_BOUNDS}
    np.savez(tmp_path / "scaled.npz", **{**unmarked, "actions": action * 3})
    scaled = read_npz(tmp_path / "scaled.npz", action_bounds=(-3, 3))
    for data in (made, read_npz(path), scaled):
        drawn = transitions()(data).sample(50, generator()).action
        assert torch.isfinite(torch.atanh(drawn)).all()
        assert torch.isfinite(torch.log1p(-drawn.square())).all()
        np.testing.assert_allclose(data.action, action.clip(-1 + 1e-5, 1 - 1e-5), atol=1e-7)
