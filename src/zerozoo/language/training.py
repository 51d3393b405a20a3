"""From a recipe's Config to a whole run of the zero-RL loop.

`config` is a recipe's Config, completed; the functions read the fields of `settings.ZeroRLConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.build import (
    check_numbers,
    make_critic_settings,
    make_loop_settings,
    make_optimizer,
    make_reference,
    make_sampler,
    make_update_settings,
    open_critic,
    open_policy,
    open_verifier,
    prompt_maker,
    save_policy,
    write_in_slices,
)
from zerozoo.language.credit import Credit
from zerozoo.language.critic import ValueModel
from zerozoo.language.device import Machine, choose_machine, set_up_machine
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import Ranks, check_processes, join_ranks
from zerozoo.language.plan import GIB, describe_plan, model_size
from zerozoo.language.precision import rollout_sampler, set_gradients
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.task_choice import fit_tasks, load_tasks_for
from zerozoo.language.turns import TurnSampler
from zerozoo.language.update import Updater
from zerozoo.language.zero_rl import ExtraReward, ZeroRL
from zerozoo.language.zoo import recommended
from zerozoo.rewards.terms import load_reward
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import TaskSet

Config = TypeVar("Config", bound=Any)


@dataclass(frozen=True)
class Parts:
    """What a recipe may need to build parts of its own."""

    policy: LanguageModel
    machine: Machine
    ranks: Ranks


def complete(config: Config) -> Config:
    """The config with the fields filled in that are left to the model's row of the zoo table (card M5).

    Raises UserError for numbers that no run could use.
    """
    row = recommended(config.model)
    coefficient = config.kl_coefficient if config.kl_coefficient >= 0 else (row.kl_coefficient if row else 1e-4)
    longest = config.max_new_tokens or (row.max_new_tokens if row else 1024)
    completed = replace(config, kl_coefficient=coefficient, max_new_tokens=longest)
    check_numbers(completed)
    return completed


def train_zero_rl(
    config: Any,
    run: Run,
    algorithm: Algorithm,
    credit: Callable[[Parts], Credit] | None = None,
    extra_reward: ExtraReward | None = None,
    frozen_steps: int = 0,
    instructions: tuple[str, ...] = (),
    tasks: TaskSet | None = None,
) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics.

    Args:
        algorithm: the objective.
        credit: makes what gives the credit, once the policy is there; None: the algorithm's advantage, over groups.
        extra_reward: added to the rewards of the verdicts, see `ZeroRL`.
        frozen_steps: first steps in which only the credit learns.
        instructions: fixed texts, each of which asks for another turn; see `turns`.
        tasks: the problems, in place of those that the config names.
    """
    if frozen_steps < 0:
        raise UserError(f"frozen_steps is {frozen_steps}, but must not be negative.")
    check_processes(config)
    machine = set_up_machine(config)
    reward, tasks = load_reward(config.reward), tasks or load_tasks_for(config)
    ranks = join_ranks(machine.device)
    policy = open_policy(config, machine, shards=True)
    sampler = make_sampler(config.sampler, policy, machine, ranks)
    tasks = fit_tasks(config, tasks, policy, sampler, run, ranks)
    set_gradients(config, policy)
    optimizer = make_optimizer(policy, config.learning_rate, config.weight_decay)
    updater = Updater(policy, optimizer, algorithm, make_update_settings(config, machine), ranks)
    decoding = Decoding(config.max_new_tokens, config.temperature, stop_strings=tasks.stop)
    prompt = prompt_maker(policy, tasks.template)
    writer = rollout_sampler(config, sampler, policy, [prompt(task) for task in tasks.train], decoding)
    writer = write_in_slices(config, writer)
    with open_verifier(tasks, ranks) as verifier:
        episodes = TurnSampler(policy, sampler, verifier, reward, decoding, instructions) if instructions else None
        metrics = ZeroRL(
            policy=policy,
            sampler=writer,
            tasks=tasks,
            prompt=prompt,
            verifier=verifier,
            reward=reward,
            algorithm=algorithm,
            updater=updater,
            decoding=decoding,
            settings=replace(make_loop_settings(config), frozen_steps=frozen_steps),
            run=run,
            reference=make_reference(policy, updater) if algorithm.kl.coefficient else None,
            credit=credit(Parts(policy, machine, ranks)) if credit else None,
            extra_reward=extra_reward,
            episodes=episodes,
            evaluation_sampler=sampler,
            ranks=ranks,
            profile=config.profile,
        ).train()
    save_policy(policy, run)
    return metrics


def plan_zero_rl(config: Any) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return describe_plan(
        config, choose_machine(config.device, config.dtype, config.tokens_per_microbatch, config.rows_at_once)
    )


def train_with_critic(
    config: Any,
    run: Run,
    algorithm: Algorithm,
    extra_reward: ExtraReward | None = None,
    tasks: TaskSet | None = None,
    values: Callable[[Machine], ValueModel] | None = None,
) -> dict[str, float]:
    """PPO: as `train_zero_rl`, credit by token from a critic. `config` has the fields of `settings.CriticConfig`.

    values: makes the value model that the critic begins as, in place of the checkpoint `config.critic`.
    """
    wanted = make_critic_settings(config)

    def critic(parts: Parts) -> Credit:
        made = values(parts.machine) if values else None
        return open_critic(config, wanted, parts.policy, parts.machine, parts.ranks, made)

    return train_zero_rl(config, run, algorithm, critic, extra_reward, config.frozen_steps, tasks=tasks)


def plan_with_critic(config: Any) -> list[tuple[str, str]]:
    """As `plan_zero_rl`, and what the critic takes."""
    lines, size = plan_zero_rl(config), model_size(config.critic or config.model)
    if size is None:
        return lines
    words = (
        f"{size.parameters / 1e6:,.0f}M parameters of its own: weights, gradients and Adam's moments take about"
        f" {16 * size.parameters / GIB:.1f} GiB beside the memory above"
    )
    return [*lines, ("critic", words)]
