"""Contexts and prompts: the encoder against torch's GRU, histories and prompts by hand, the player against training."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, nn

from zerozoo.control.agents.meta_dt import MetaDT
from zerozoo.control.contexts import ContextEncoder, ContextModel, WorldModel, context_metrics, histories
from zerozoo.control.episodes import Episode, Episodes
from zerozoo.control.few_shot import FewShotEvaluator
from zerozoo.control.networks import initialise
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.prompts import Prompt, PromptedSequences, PromptPool, best_of_tasks, draw_trajectories
from zerozoo.control.spec import Spec
from zerozoo.control.views import sequences
from zerozoo.environments.batched.point_tasks import PointTasks
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SPEC = Spec((2,), 2, discrete=False)
SETTINGS = {
    "predicts": "reward",
    "context_size": 3,
    "context_hidden": 8,
    "model_learning_rate": 1e-3,
    "model_gradient_norm": 1.0,
    "horizon": 2,
    "width": 16,
    "blocks": 2,
    "heads": 2,
    "dropout": 0.0,
    "length": 4,
    "longest": 6,
    "return_scale": 2.0,
    "prompt_after": 0,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "warmup_updates": 1,
    "max_gradient_norm": 1.0,
}


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def config(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**SETTINGS, **changes})


def numbered(*lengths: int, tasks: tuple[int, ...] | None = None) -> Episodes:
    """Step i of all: obs (i + e, 0) and so on, action (i, -i) / 100, reward i + 1; e the episode."""
    items, step, row = [], 0, 0
    for number, length in enumerate(lengths):
        rows, steps = np.arange(row, row + length + 1), np.arange(step, step + length)
        obs = np.stack([rows, 0 * rows], 1).astype(np.float32)
        action = np.stack([steps, -steps], 1).astype(np.float32) / 100
        task = np.full(length, tasks[number] if tasks else 0)
        items.append(Episode(obs, action, steps + 1.0, extras={"task": task}))
        row, step = row + length + 1, step + length
    return Episodes.from_list(items)


# --- histories and contexts


def test_histories_end_before_the_step_and_begin_with_the_episode() -> None:
    normaliser = Normaliser((2,))
    normaliser.mean.copy_(torch.tensor([1.0, 0.0]))
    rows = histories(numbered(3, 2), 2, normaliser)
    assert rows.shape == (5, 2, 5)
    zero = [0.0] * 5
    first, second = [-1.0, 0, 0, 0, 1], [0.0, 0, 0.01, -0.01, 2]
    fourth = [3.0, 0, 0.03, -0.03, 4]  # step 3 is the first of the second episode; its observation is in row 4
    expected = [[zero, zero], [zero, first], [first, second], [zero, zero], [zero, fourth]]
    torch.testing.assert_close(rows, torch.tensor(expected))


def test_the_encoder_is_torchs_gru() -> None:
    encoder = initialise(ContextEncoder(SPEC, config()), generator())
    reference = nn.GRU(48, 8, batch_first=True)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(encoder.inputs.weight[0].T)
        reference.weight_hh_l0.copy_(encoder.recurrent.weight[0].T)
        reference.bias_ih_l0.copy_(encoder.inputs.bias[0, 0])
        reference.bias_hh_l0.copy_(encoder.recurrent.bias[0, 0])
        history = torch.randn((7, 4, 5), generator=generator(1))
        parts = [
            torch.relu(history[..., a:b] @ layer.weight[0] + layer.bias[0])
            for layer, (a, b) in zip(encoder.embed, ((0, 2), (2, 4), (4, 5)), strict=True)
        ]
        last = reference(torch.cat(parts, -1))[0][:, -1]
        torch.testing.assert_close(encoder(history), last @ encoder.output.weight[0] + encoder.output.bias[0, 0])


@pytest.mark.parametrize("predicts", ["reward", "next_obs"])
def test_the_error_is_of_what_differs_between_tasks(predicts: str) -> None:
    """All weights 0: the prediction is 0. What must not be known to predict has no effect."""
    model = initialise(ContextModel(SPEC, config(predicts=predicts)), generator())
    obs, action, next_obs = torch.randn((3, 4, 2), generator=generator(1))
    reward, context = torch.arange(4.0), torch.randn((4, 3), generator=generator(2))
    before = model(obs, action, reward, next_obs, context)
    shifted = model(obs, action, reward, next_obs + 1, context)
    assert (before == shifted).all() == False  # noqa: E712
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
    wanted = reward.square() if predicts == "reward" else next_obs.square().sum(-1)
    torch.testing.assert_close(silent(obs, action, reward, next_obs, context), wanted)
    if predicts == "next_obs":  # the reward plays no part, and the next observation is no input
        assert torch.equal(model(obs, action, reward + 1, next_obs, context), before)


def test_the_code_tells_the_task() -> None:
    """Reward (task + 1) a_x: with the code the reward is known, without it is not, and the code gives the task."""
    rng = np.random.default_rng(0)
    tasks = np.linspace(-1, 1, 12)[:, None]
    items = []
    for task in range(12):
        for _ in range(20):
            action = rng.uniform(-0.9, 0.9, (10, 2))
            reward = (tasks[task, 0] + 1) * action[:, 0]
            items.append(Episode(rng.normal(size=(11, 2)), action, reward, extras={"task": np.full(10, task)}))
    data = Episodes.from_list(items)
    heldout = np.isin(data.extras["task"][data.starts], (3, 8))
    known, unknown = data.select(~heldout), data.select(heldout)
    normaliser = Normaliser((2,)).fit(data.obs)
    settings = config(context_hidden=32, model_learning_rate=5e-3, horizon=3)
    model = WorldModel(data.spec, settings, generator())
    model.normaliser = normaliser
    sampler = model.view(known.replace(extras={"history": histories(known, 3, normaliser).numpy()}))
    for _ in range(400):
        model.update(sampler.sample(128, generator=generator(int(model.updates))))
    found = context_metrics(model, known, unknown, tasks, 3)
    assert found["context/error"] < 0.5 * found["context/error_without"]
    assert found["context/probe"] > 0.5


# --- prompts


def pool(data: Episodes, selection: str, errors: torch.Tensor | None = None, length: int = 2) -> PromptPool:
    normaliser = Normaliser((2,))
    normaliser.mean.copy_(torch.tensor([1.0, 0.0]))
    return PromptPool(data, length, selection, errors, normaliser, return_scale=2.0)


def starts(prompts: PromptPool, trajectory: int, draws: int = 20_000) -> list[float]:
    drawn = prompts.draw(torch.full((draws,), trajectory), generator())
    return (torch.bincount(drawn.timestep[:, 0], minlength=3) / draws).tolist()


def test_a_prompt_is_consecutive_steps_of_one_trajectory() -> None:
    data = numbered(4, 3)
    drawn = pool(data, "uniform").draw(torch.tensor([1] * 50), generator())
    assert set(drawn.timestep[:, 0].tolist()) == {0, 1}
    assert torch.equal(drawn.timestep[:, 1], drawn.timestep[:, 0] + 1)
    step = 4 + drawn.timestep  # of all; its observation lies one row further
    assert torch.equal(drawn.obs[..., 0], step + 1 - 1.0)  # standardised
    torch.testing.assert_close(drawn.action[..., 0], step / 100)
    to_go = torch.tensor([5.0 + 6 + 7, 6 + 7, 7]) / 2
    torch.testing.assert_close(drawn.return_to_go, to_go[drawn.timestep])


def test_where_a_prompt_starts() -> None:
    """Errors 1, 0, 3, 0 | 1, 1, 5: sums of two steps 1, 3, 3 | 2, 6."""
    data, errors = numbered(4, 3), torch.tensor([1.0, 0, 3, 0, 1, 1, 5])
    np.testing.assert_allclose(starts(pool(data, "sampled", errors), 0), [1 / 7, 3 / 7, 3 / 7], atol=0.015)
    np.testing.assert_allclose(starts(pool(data, "sampled", errors), 1), [1 / 4, 3 / 4, 0], atol=0.015)
    assert starts(pool(data, "largest", errors), 0) == [0, 1, 0]
    assert starts(pool(data, "largest", errors), 1) == [0, 1, 0]
    np.testing.assert_allclose(starts(pool(data, "uniform", errors), 0), [1 / 3] * 3, atol=0.015)
    np.testing.assert_allclose(starts(pool(data, "uniform"), 1), [1 / 2, 1 / 2, 0], atol=0.015)


def test_prompts_come_from_the_best_trajectories_of_the_own_task() -> None:
    data = numbered(3, 3, 3, 3, 3, tasks=(1, 0, 1, 1, 0))  # returns rise
    assert best_of_tasks(data, 2).tolist() == [[4, 1], [3, 2]]
    assert best_of_tasks(data, 4).tolist() == [[4, 1, 4, 1], [3, 2, 0, 3]]
    drawn = draw_trajectories(best_of_tasks(data, 2), torch.tensor([0, 1] * 500), generator())
    assert (set(drawn[::2].tolist()), set(drawn[1::2].tolist())) == ({1, 4}, {2, 3})
    sampler = PromptedSequences(data, sequences(2), pool(data, "uniform"), best=1)
    batch = sampler.sample(200, generator())
    prompt = Prompt.of_batch(batch)
    assert prompt is not None
    episode = torch.from_numpy(data.episode_of)[batch.index]
    task = torch.tensor([1, 0, 1, 1, 0])[episode]
    source = torch.tensor([4, 3])[task]
    torch.testing.assert_close(prompt.action[..., 0], (3 * source[:, None] + prompt.timestep) / 100)
    assert Prompt.of_batch(PromptedSequences(data, sequences(2), None, best=1).sample(4, generator())) is None
    with pytest.raises(UserError, match="Task 0 has no episode"):
        best_of_tasks(numbered(2, tasks=(1,)), 1)


def test_prompts_that_cannot_be() -> None:
    with pytest.raises(UserError, match="Unknown selection of prompts 'first'; choose from: uniform"):
        pool(numbered(4, 3), "first")
    for length in (0, 4):
        with pytest.raises(UserError, match="A prompt can have 1 to 3 steps here"):
            pool(numbered(4, 3), "uniform", length=length)


# --- the agent


def agent(with_context: bool = True, **changes: Any) -> MetaDT:
    made = MetaDT(SPEC, config(**changes), generator())
    made.normaliser = Normaliser((2,))
    made.normaliser.mean.copy_(torch.tensor([1.0, 0.5]))
    if with_context:
        made.context_model = initialise(ContextModel(SPEC, config()), generator(3))
    return made


def a_prompt(size: int) -> Prompt:
    draws = generator(5)
    pieces = [torch.randn(shape, generator=draws) for shape in ((size, 2), (size, 2, 2), (size, 2, 2))]
    return Prompt(pieces[0], pieces[1], pieces[2].clamp(-1, 1), torch.tensor([[1, 2]]).expand(size, -1))


@pytest.mark.parametrize("prompted", [True, False])
def test_the_player_sees_what_training_sees(prompted: bool) -> None:
    """An episode is played, recorded, and read again as a window with contexts: the same actions come out."""
    made, rewards = agent(), np.array([[0.5, -1.0], [0.25, 0.0], [1.0, 2.0], [0.0, 0.5]])
    prompt = a_prompt(2) if prompted else None
    target = torch.tensor([3.0, 5.0])
    player, obs = made.player(target, prompt), torch.randn((4, 2, 2), generator=generator(7))
    actions = []
    for step in range(4):
        actions.append(player.act(obs[step]))
        player.observe(rewards[step])
    played = torch.stack(actions, 1)  # (2, 4, m)
    for row in range(2):
        rows = np.concatenate([obs[:, row].numpy(), np.zeros((1, 2), np.float32)])
        data = Episodes.from_list([Episode(rows, played[row].numpy(), rewards[:, row])])
        context = made.context_model.encoder(histories(data, 2, made.normaliser))
        asked = (target[row] - np.cumsum([0, *rewards[:3, row]])).float() / 2.0
        one = None if prompt is None else Prompt(*(value[row : row + 1] for value in vars(prompt).values()))
        made.eval()
        seen = made.policy(
            made.normaliser(torch.from_numpy(rows[:4]))[None],
            played[row][None],
            asked[None],
            torch.arange(4)[None],
            torch.ones((1, 4), dtype=torch.bool),
            context[None],
            one,
        )
        torch.testing.assert_close(seen[0], played[row], atol=1e-5, rtol=1e-4)


def test_context_and_prompt_reach_the_action() -> None:
    obs, target = torch.randn((3, 2), generator=generator(1)), torch.ones(3)
    first = agent().player(target).act(obs)
    assert not torch.allclose(first, agent().player(target, a_prompt(3)).act(obs), atol=1e-4)
    assert not torch.allclose(first, agent(with_context=False).player(target).act(obs), atol=1e-4)
    other = a_prompt(3)
    moved = Prompt(other.return_to_go, other.obs, other.action, other.timestep + 1)
    assert not torch.equal(agent().player(target, other).act(obs), agent().player(target, moved).act(obs))


def test_the_first_updates_see_no_prompt() -> None:
    data = numbered(5, 5, 5).replace(reward=np.ones(15))
    coded = data.replace(extras={**data.extras, "context": np.zeros((15, 3), np.float32)})
    batch = PromptedSequences(coded, sequences(4), pool(coded, "uniform"), best=1).sample(8, generator())
    made = agent(prompt_after=1)
    gradients = []
    for _ in range(2):
        made.update(batch)
        gradients.append(float(made.policy.embed_prompt[0].weight.grad.abs().sum()))
    assert gradients[0] == 0
    assert gradients[1] > 0


def test_the_loss_is_the_mean_square_over_the_valid_steps() -> None:
    data = numbered(2, 5)
    coded = data.replace(extras={**data.extras, "context": np.zeros((7, 3), np.float32)})
    batch = PromptedSequences(coded, sequences(4), None, best=1).sample(6, generator())
    made = agent()
    with torch.no_grad():
        made.policy.head.weight.zero_()
        made.policy.head.bias.copy_(torch.atanh(torch.tensor([0.5, 0.0])).view(1, 1, 2))
    error = (batch.action - torch.tensor([0.5, 0.0]))[batch.mask].square().mean()
    assert float(made.policy_loss(batch)) == pytest.approx(float(error), rel=1e-5)
    assert not bool(batch.mask.all())


# --- few-shot evaluation


class Follower:
    """An agent that goes where its prompt went, and nowhere without one."""

    def __init__(self) -> None:
        self.prompts: list[Prompt | None] = []

    def player(self, target_return: torch.Tensor, prompt: Prompt | None = None) -> Any:
        self.prompts.append(prompt)
        action = torch.zeros(len(target_return), 2) if prompt is None else prompt.action.mean(1) + 0.25
        return SimpleNamespace(act=lambda obs: action, observe=lambda reward: None)


def test_later_rounds_get_prompts_from_the_own_earlier_episodes(tmp_path: Path) -> None:
    """Goals at (1, 1): going 0, 0.25, 0.5, ... each way earns more from round to round."""
    world, run = PointTasks(2, "goals", np.ones((2, 2)), time_limit=4), Run(tmp_path / "run")

    def make_pool(data: Episodes) -> PromptPool:
        return PromptPool(data, 2, "uniform", None, Normaliser((2,)), 1.0)

    targets = {"task": torch.ones(2), "constant": torch.zeros(2)}
    follower = Follower()
    evaluator = FewShotEvaluator(world, targets, (-6.0, -2.0), rounds=3, pool=make_pool, best=1)
    metrics = evaluator(follower, run, 5)
    returns = [-sum(np.sqrt(2) * (1 - 0.1 * speed * step) for step in (1, 2, 3, 4)) for speed in (0, 0.25, 0.5)]
    scores = [(value + 6) / 4 for value in returns]
    assert metrics["score/first"] == pytest.approx(scores[0], rel=1e-5)
    assert metrics["score"] == metrics["score/constant"] == pytest.approx(np.mean(scores[1:]), rel=1e-5)
    assert [prompt is None for prompt in follower.prompts] == [True, False, False] * 2
    rows = run.samples()
    assert len(rows) == 2 * 3 * 2
    found = [row["return"] for row in rows if row["target"] == "task" and row["task"] == 1]
    np.testing.assert_allclose(found, returns, rtol=1e-5)
    alone = FewShotEvaluator(world, targets, (-6.0, -2.0), rounds=3, pool=None, best=1)
    assert alone(Follower(), run, 6)["score"] == pytest.approx(scores[0], rel=1e-5)
    with pytest.raises(UserError, match="rounds must be at least 2"):
        FewShotEvaluator(world, targets, (-6.0, -2.0), rounds=1, pool=None, best=1)
