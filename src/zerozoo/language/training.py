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
    make_loop_settings,
    make_optimizer,
    make_reference,
    make_sampler,
    make_update_settings,
    open_policy,
    open_verifier,
    prompt_maker,
    save_policy,
)
from zerozoo.language.credit import Credit
from zerozoo.language.device import Machine, choose_machine
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import Ranks, join_ranks
from zerozoo.language.plan import describe_plan
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.task_choice import fit_tasks, load_tasks_for
from zerozoo.language.update import Updater
from zerozoo.language.zero_rl import ExtraReward, ZeroRL
from zerozoo.language.zoo import recommended
from zerozoo.rewards.terms import load_reward
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

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
) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics.

    Args:
        algorithm: the objective.
        credit: makes what gives the credit, once the policy is there; None: the algorithm's advantage, over groups.
        extra_reward: added to the rewards of the verdicts, see `ZeroRL`.
        frozen_steps: first steps in which only the credit learns.
    """
    if frozen_steps < 0:
        raise UserError(f"frozen_steps is {frozen_steps}, but must not be negative.")
    machine = choose_machine(config.device, config.dtype, config.tokens_per_microbatch, config.rows_at_once)
    reward, tasks = load_reward(config.reward), load_tasks_for(config)
    ranks, policy = join_ranks(machine.device), open_policy(config, machine)
    sampler = make_sampler(config.sampler, policy, machine, ranks)
    tasks = fit_tasks(config, tasks, policy, sampler, run, ranks)
    optimizer = make_optimizer(policy, config.learning_rate, config.weight_decay)
    updater = Updater(policy, optimizer, algorithm, make_update_settings(config, machine), ranks)
    with open_verifier(tasks, ranks) as verifier:
        metrics = ZeroRL(
            policy=policy,
            sampler=sampler,
            tasks=tasks,
            prompt=prompt_maker(policy, tasks.template),
            verifier=verifier,
            reward=reward,
            algorithm=algorithm,
            updater=updater,
            decoding=Decoding(config.max_new_tokens, config.temperature, stop_strings=tasks.stop),
            settings=replace(make_loop_settings(config), frozen_steps=frozen_steps),
            run=run,
            reference=make_reference(policy, updater) if algorithm.kl.coefficient else None,
            credit=credit(Parts(policy, machine, ranks)) if credit else None,
            extra_reward=extra_reward,
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
