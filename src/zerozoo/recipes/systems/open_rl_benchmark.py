"""Open RL Benchmark: runs that are tracked so completely that others can query, compare and repeat them.

Every training leaves its config, the versions of what it was made with, and every metric of every step. A query names
runs by what they are, and all that a paper shows (tables, curves, aggregates with intervals) comes from a query, not
from new training. Whoever doubts a run repeats it from its record and gets the same numbers.

A config with `environments` is a study: a tracked run of PPO in each of them, below runs/, a table that a query gives,
and, with `rerun`, the repetition of every run from its config alone. Without it is one such run. The rest of the system
is in the library: tracker `runs.run`, index `runs.store`, queries `runs.queries`, aggregates `runs.compare`, and the
command line `zerozoo runs`.

What differs from the paper and its code, and why:

* Runs lie in folders; there is no service. The index is made from the folders and can be deleted.
* Curves are compared over the steps that all runs have. The reference stretches each run from its own first to its own
  last step, which sets early steps of a long run beside late ones of a short run.
* A final score is the mean of the last 100 logged points, but of no more than a tenth of them, so that it is not an
  average over the whole training where little is logged.
* Tags are a set, and users are one more condition. The reference's offline index finds nothing for two tags, and drops
  all other conditions once a user is given.
* Intervals come from 2,000 resamples; the reference's default is 10.
* Max-min scores belong to the runs that were compared; `score` uses the range that the environments' rules allow.

Case study of the claim: what PPO's value is trained towards. Advantages are the same in both arms; the target is
advantage + value, which is TD(lambda), or the rewards to the end of the episode or rollout (Monte-Carlo).

Not reproduced: the public collection of over 25,000 runs (`zerozoo runs import` reads what its trackers write), Atari
and the other suites, the second case study (a distributed PPO).

The file is longer than 200 lines because its two claims have judges of their own.
"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zerozoo.control.agents import PPO
from zerozoo.control.build import loop_fields, make_reward, make_world
from zerozoo.control.episode_log import EPISODE, TARGETS, EpisodeLogLoop, RecordedVecEnv
from zerozoo.recipes.baselines import ppo
from zerozoo.runs.aggregates import Array, difference_interval, iqm, max_min, normalise
from zerozoo.runs.claims import FAILS, HOLDS, INCONCLUSIVE, ArmResults, Claim, Judgement, require_mean
from zerozoo.runs.compare import final_score, gather, interpolate
from zerozoo.runs.errors import UserError
from zerozoo.runs.queries import arms_of_filters, parse_filter_set
from zerozoo.runs.run import Run
from zerozoo.runs.statistics import Interval
from zerozoo.runs.store import Store, load_duckdb

PAPER = "Open RL Benchmark: Comprehensive Tracked Experiments for Reinforcement Learning (2024), arXiv 2402.03046"

SLUG = "open-rl-benchmark"
WINDOW, SAMPLED_POINTS, CURVE_POINTS = 100, 500, 20  # of the paper's tables, sampled histories and efficiency curves
# The study of the claim, with the smallest and the largest return that the rules allow.
RANGES = {"CartPole-v1": (0.0, 500.0), "Acrobot-v1": (-500.0, 0.0), "InvertedPendulum-v5": (0.0, 1000.0)}
NO_WORSE = -0.02  # what the difference of the claim must exceed


@dataclass(frozen=True)
class Config(ppo.Config):
    """PPO's fields, and what the study does."""

    environments: tuple[str, ...] = ()  # a tracked run in each, below runs/; (): one run, in `environment`
    value_target: str = "td-lambda"  # of the state value; monte-carlo: rewards to the end of episode or rollout
    rerun: bool = False  # repeat every tracked run from its config alone, and compare all numbers


EXTENDABLE = ppo.EXTENDABLE
_LAPTOP: dict[str, Any] = {
    **ppo.PRESETS["laptop"],
    "environment": "",
    "environments": tuple(RANGES),
    "steps": 60_000,
    "falls_until": 235 * 20,  # updates of 60,000 steps
    "evaluate_every": 30_000,
    "evaluation_episodes": 10,
}
_SMOKE: dict[str, Any] = {
    **ppo.PRESETS["smoke"],
    "environment": "",
    "environments": ("CartPole-v1",),
    "steps": 400,
    "rollout": 50,
    "batch_size": 50,
    "evaluate_every": 200,
    "log_every": 100,
    "checkpoint_every": 200,
}
PRESETS: dict[str, dict[str, Any]] = {"laptop": _LAPTOP, "smoke": _SMOKE}


def learn(config: Config, run: Run) -> dict[str, float]:
    """One tracked run in `config.environment`; the numbers of the last evaluation."""
    world = make_world(config)
    return EpisodeLogLoop(
        agent=PPO(world.spec(), config, run.stream("agent")),
        environment=RecordedVecEnv([world.make] * config.copies, run.streams.numpy("environment")),
        value_target=config.value_target,
        rollout=config.rollout,
        epochs=config.epochs,
        batch_size=config.batch_size,
        gamma=config.gamma,
        lam=config.lam,
        reward=make_reward(config),
        **loop_fields(config, run, world),
    ).train()


def table(config: Config, root: Path) -> dict[str, float]:
    """What a query over the tracked runs below `root` gives, environment by environment.

    final: mean of the last returns; lowest, highest: of 20 points of the learning curve, which max-min scores need;
    episodes: how many there were; sampling_error: see there. score: mean over the environments of the final return's
    place in its range, if all ranges are known.
    """
    arm = f"{SLUG}?seed={config.seed}&value_target={config.value_target}"
    query = parse_filter_set([f"?wpn=zerozoo&metric={EPISODE}", arm])
    with Store.open(root) as store:
        gathered = gather(arms_of_filters(store, [query], [config.environments]), store.series)
    (curves,) = gathered.curves.values()
    metrics: dict[str, float] = {}
    for environment in config.environments:
        if not curves[environment]:
            raise UserError(f"No run in {environment} counts: {'; '.join(gathered.discarded)}.")
        series = curves[environment][0].series
        curve = interpolate(series, np.linspace(series.steps[0], series.steps[-1], CURVE_POINTS))
        found = {"final": final_score(series, WINDOW), "lowest": curve.min(), "highest": curve.max()}
        found |= {"episodes": len(series), "sampling_error": sampling_error(series.values)}
        metrics |= {f"{name}/{environment}": float(value) for name, value in found.items()}
    if RANGES.keys() >= set(config.environments):
        places = [(metrics[f"final/{name}"] - RANGES[name][0]) / np.ptp(RANGES[name]) for name in config.environments]
        metrics["score"] = float(np.mean(places))
    return metrics


def sampling_error(values: Array) -> float:
    """By what share a table changes that is made from 500 points of the history, evenly taken, and not from all of it.

    The table is the reference's: the mean of the last 100 points, however many there are. Shapes: values (n,).
    """
    taken = np.linspace(0, len(values) - 1, min(SAMPLED_POINTS, len(values))).round().astype(int)
    whole, sampled = values[-WINDOW:].mean(), values[taken][-WINDOW:].mean()
    return float(abs(sampled - whole) / abs(whole)) if sampled != whole else 0.0


def repeat(config: Config, root: Path, target: Path) -> dict[str, float]:
    """Repeats every tracked run with `zerozoo runs rerun`, which takes nothing of it but its config.json.

    identical: share of the runs without any difference in their metrics; largest_difference: of all numbers.
    """
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was killed
    results = []
    for environment in config.environments:
        words = ["runs", "rerun", str(root / environment), "--directory", str(target / environment), "--json"]
        command = [sys.executable, "-m", "zerozoo.cli.main", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if not done.stdout:
            raise UserError(f"The run in {root / environment} could not be repeated; why stands above.")
        results.append(json.loads(done.stdout))
    largest = [math.inf if result["largest"] is None else result["largest"] for result in results]
    return {
        "identical": float(np.mean([result["identical"] for result in results])),
        "largest_difference": max(largest),
        "numbers_compared": float(sum(result["values"] for result in results)),
        "repeated_runs": float(len(results)),
    }


def train(config: Config, run: Run) -> dict[str, float]:
    """A study, or one run of it; resumes where the run directory stands."""
    if not config.environments:
        if config.rerun:
            raise UserError("rerun repeats the runs of a study: give --environments.")
        return learn(config, run)
    load_duckdb()  # the query comes after the training: say at once if there can be none
    root = run.path("runs")
    for environment in config.environments:
        single = replace(config, environment=environment, environments=(), rerun=False)
        with Run.start(root / environment, SLUG, asdict(single), config.seed, extendable=EXTENDABLE) as tracked:
            tracked.say = run.say
            learn(single, tracked)
    metrics = table(config, root)
    for name in config.environments:
        count = f"{metrics[f'episodes/{name}']:.0f} episodes"
        run.say(f"{name}: final return {metrics[f'final/{name}']:.1f} after {count}, in {root / name}")
    if config.rerun:
        metrics |= repeat(config, root, run.path("repetitions"))
    run.rewind(-1)  # of an earlier, shorter study in this directory
    run.log(config.steps, metrics)
    return metrics


def every_repetition_is_identical(results: ArmResults) -> Judgement:
    """The claim on repetition: one difference in one number is enough to fail."""
    shares, runs = results.array("ppo"), results.array("ppo", "repeated_runs")
    share = float(shares.mean())
    reason = f"{(shares * runs).sum():.0f} of {runs.sum():.0f} runs were repeated without a difference in any number"
    effect = Interval(share, float(shares.min()), float(shares.max()))
    return Judgement(HOLDS if share == 1.0 else FAILS, effect, 1.0, reason)


def td_lambda_is_no_worse(results: ArmResults) -> Judgement:
    """The claim on value targets, by the point estimate as the claim says; its interval is reported.

    Scores are max-min normalised over both arms, all seeds and the points of the learning curves. Inconclusive if
    nothing was learned in CartPole: two arms that learn nothing are equal.
    """
    values = {
        arm: np.array(
            [[results.array(arm, f"{kind}/{name}") for kind in ("final", "lowest", "highest")] for name in RANGES]
        ).transpose(2, 0, 1)  # (R, T, 3)
        for arm in TARGETS
    }
    low, high = max_min({arm: array[..., 1:] for arm, array in values.items()})
    td_lambda, monte_carlo = (normalise(values[arm], low, high)[..., 0] for arm in TARGETS)  # each (R, T)
    effect = difference_interval(td_lambda, monte_carlo, iqm)
    errors = [results.array(arm, f"sampling_error/{name}").max() for arm in TARGETS for name in RANGES]
    reason = (
        f"IQM of the normalised final returns: {float(iqm(td_lambda)):.3f} - {float(iqm(monte_carlo)):.3f} ="
        f" {effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}], to be above {NO_WORSE}; tables from"
        f" {SAMPLED_POINTS} sampled points differ by {100 * max(errors):.2f} % at most"
    )
    unmet = require_mean("td-lambda", 100.0, metric="final/CartPole-v1")(results)
    if unmet:
        return Judgement(INCONCLUSIVE, effect, NO_WORSE, f"precondition not met: {unmet}; {reason}", False)
    return Judgement(HOLDS if effect.value > NO_WORSE else FAILS, effect, NO_WORSE, reason)


CLAIM = (
    Claim(
        statement="A tracked run that is repeated from its config alone has the same metrics, number by number.",
        arms={"ppo": {}},
        metric="identical",
        holds=every_repetition_is_identical,
        seeds=(0, 1, 2),
        budget="6 trainings of 30,000 steps, each done twice",
        base={
            **_LAPTOP,
            "environments": ("CartPole-v1", "Acrobot-v1"),
            "steps": 30_000,
            "falls_until": 118 * 20,
            "rerun": True,
        },
        smoke=_SMOKE,
    ),
    Claim(
        statement="PPO whose value is trained towards TD(lambda) ends no lower than with the Monte-Carlo target.",
        arms={target: {"value_target": target} for target in TARGETS},
        metric="score",
        holds=td_lambda_is_no_worse,
        seeds=(0, 1, 2, 3, 4),
        budget="30 trainings of 60,000 steps",
        base=_LAPTOP,
        smoke=_SMOKE,
        name="value-target",
    ),
)
