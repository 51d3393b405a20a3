"""What surrounds RL on unit tests: developers' tests to learn from, reward models of qualities, a check at the end.

`config` is the config of a zero-RL training whose problems are functions to test (`tasks.unit_tests`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zerozoo.language.demonstrations import Lessons
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import KEPT, Row, kept_rows, read_rows
from zerozoo.language.parallel import join_ranks
from zerozoo.language.pointwise_rewards import pointwise_reward_stage, weighted_reward
from zerozoo.language.reward_stage import REWARD_MODEL, draw_responses
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.stages import Outputs, Stage
from zerozoo.language.zero_rl import ExtraReward
from zerozoo.rewards.unit_test_runs import describe_tests, measuring_sandbox
from zerozoo.rewards.unit_tests import analyse, combined_reward, is_sound, quality_reward
from zerozoo.runs.run import Run
from zerozoo.tasks.unit_tests import START, STOP, TEMPLATE, written_tests

UNIFIED = "unified"  # the reward model of the weighted sum
_COLUMNS = ("prompt", "response", "labels")


def developers_tests(seed: int, count: int, gold: bool) -> list[Row]:
    """`count` rows {"prompt", "response"} from the corpus of careless developers; with `gold` only of sound tests."""
    rows: list[Row] = []
    for focal, response in written_tests(f"sft/{seed}", 100 * count):
        test = response.split(STOP[0])[0]
        if not gold or is_sound(analyse(START + test, focal.name)):
            rows.append({"prompt": TEMPLATE.replace("{question}", focal.source), "response": test})
        if len(rows) == count:
            break
    return rows


def labelled_tests(drawn: Rollouts, weights: Mapping[str, float]) -> list[Row]:
    """Rows with the analyser's labels: -1, 0 or 1 for every quality in `weights`, and "unified", their weighted sum."""
    sequences, rows = drawn.sequences(range(len(drawn))), list[Row]()
    for row, group in enumerate(drawn.groups.tolist()):
        source, focal = drawn.verifications[row].extracted, drawn.tasks[group].metadata["focal"]
        labels = {name: quality_reward(source, focal, name) for name in weights}
        labels[UNIFIED] = combined_reward(source, focal, weights)
        rows.append({"prompt": sequences.prompts[row], "response": sequences.responses[row], "labels": labels})
    return rows


def quality_reward_stages(
    config_of: Callable[[Mapping[str, Outputs]], Any],
    weights: Mapping[str, float],
    unified: bool,
    lessons: Lessons,
    problems: int,
) -> list[Stage]:
    """Stages that draw tests, label them and train a reward model for each quality, or a single one for their sum.

    Args:
        config_of: (outputs of the stages before) -> the config whose `model` draws and whose weights the reward models
            begin with; its `samples_per_prompt` tests are drawn for each of the first `problems` functions.
    """

    def draw(run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
        config = config_of(outputs)

        def make() -> list[Row]:
            drawn = draw_responses(config, run, lambda tasks: tasks.train[:problems], "reward-data")
            return labelled_tests(drawn, weights)

        machine = set_up_machine(config)
        kept_rows(run, make, _COLUMNS, join_ranks(machine.device))
        return Outputs({"rows": run.path(KEPT)})

    def rows_for(name: str) -> Callable[[Mapping[str, Outputs]], Sequence[Row]]:
        def rows(outputs: Mapping[str, Outputs]) -> Sequence[Row]:
            kept = read_rows(outputs["reward-data"].files["rows"], _COLUMNS)
            return [{**row, "label": row["labels"][name]} for row in kept]

        return rows

    names = [UNIFIED] if unified else list(weights)
    models = [pointwise_reward_stage(f"reward-{name}", lessons, config_of, rows_for(name)) for name in names]
    return [Stage("reward-data", draw), *models]


def learned_quality(
    config: Any, outputs: Mapping[str, Outputs], weights: Mapping[str, float], unified: bool
) -> ExtraReward:
    """The reward models that `quality_reward_stages` has left, as one reward."""
    chosen = {UNIFIED: 1.0} if unified else weights
    folders = {name: outputs[f"reward-{name}"].files[REWARD_MODEL] for name in chosen}
    machine = set_up_machine(config)
    return weighted_reward(folders, chosen, machine.device, machine.tokens_per_microbatch)


def check_tests(config: Any, run: Run, samples: int, mutants: int) -> dict[str, float]:
    """What the run's model writes for held-out functions, by reading and by running it; logged once at the last step.

    Metrics "tests/...": those of `unit_test_runs.describe_tests`, and "tests/cut-off", the share that reached the
    length limit: such a test is no syntax error of the model's.
    """
    known = [row for row in run.history() if "tests/sound" in row]
    if known:
        return {name: value for name, value in known[-1].items() if name.startswith("tests/")}
    asked = replace(config, model=str(run.path("model")), samples_per_prompt=samples)
    drawn = draw_responses(asked, run, lambda tasks: tasks.heldout, "check")
    problems = [drawn.tasks[group].metadata for group in drawn.groups.tolist()]
    sources = [one.extracted for one in drawn.verifications]
    shares = describe_tests(measuring_sandbox(), problems, sources, mutants)
    shares["cut-off"] = 1 - float(drawn.samples.stopped.float().mean())
    metrics = {f"tests/{name}": value for name, value in shares.items()}
    run.log(config.steps, metrics)
    return metrics
