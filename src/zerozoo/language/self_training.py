"""Rounds of search and learning: trees of searches and of plain samples, and the rows that are made of them.

`bench` holds policy, sampler, problems and verifier of a round; its config is a `tuning.SamplingConfig`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from zerozoo.language.build import prompt_maker
from zerozoo.language.example_files import Row, tokenise
from zerozoo.language.process_rewards import area_under_curve
from zerozoo.language.reward_models import RewardScorer, load_reward_model
from zerozoo.language.step_values import StepSplitter
from zerozoo.language.tree_search import SEARCHES, Node, Search, SearchSettings, StepWriter
from zerozoo.language.tuning import Bench
from zerozoo.language.value_targets import judge_leaves, plant
from zerozoo.runs.checkpoints import replace_file
from zerozoo.runs.streams import Streams
from zerozoo.tasks.task import Task


def search_problems(
    bench: Bench,
    value_model: Path,
    tasks: Sequence[Task],
    method: str,
    settings: SearchSettings,
    step_tokens: int,
    most_steps: int,
    stream: str,
) -> tuple[list[Search], dict[str, float]]:
    """The trees of the problems, their ended nodes judged, and how the search went.

    Metrics: solved, the share of problems whose answer (`Search.answer`) is right; found, the share with a right
    solution anywhere in the tree; steps, the mean number of generated steps; auc, of the values of ended solutions,
    right against wrong ones (absent without both kinds).

    Args:
        method: one of `tree_search.SEARCHES`.
        stream: name of the random numbers, which depend on it and on the seed of the run alone.
    """
    assert bench.verifier is not None
    model = load_reward_model(value_model, device=bench.machine.device)
    scorer = RewardScorer(model, bench.machine.tokens_per_microbatch, bench.ranks, normalised=False)
    generator = Streams(bench.config.seed).torch(stream)
    writer = StepWriter(
        bench.policy, bench.sampler, scorer.responses, bench.decoding(), step_tokens, most_steps, generator
    )
    prompt = prompt_maker(bench.policy, bench.tasks().template)
    searches = [Search(prompt(task)) for task in tasks]
    SEARCHES[method](searches, writer, settings)
    judge_leaves(searches, tasks, bench.verifier, StepSplitter(bench.policy, bench.tasks().stop))
    answers = [search.answer() for search in searches]
    ended = [node for search in searches for node in search.root.nodes() if node.ended]
    metrics = {
        "solved": sum(node is not None and node.right for node in answers) / len(tasks),
        "found": sum(any(node.right for node in search.root.nodes()) for search in searches) / len(tasks),
        "steps": sum(search.steps for search in searches) / len(tasks),
    }
    if len({node.right for node in ended}) == 2:
        metrics["auc"] = area_under_curve([node.value for node in ended], [float(node.right) for node in ended])
    return searches, metrics


def sampled_trees(bench: Bench, worked: dict[str, str]) -> tuple[list[Search], list[Task]]:
    """Trees of plain samples to the problems of the config, each with its worked solution in it where there is one.

    Args:
        worked: task id -> text of a right response.
    """
    drawn = bench.draw()
    splitter = StepSplitter(bench.policy, bench.tasks().stop)
    trees = {task.id: (Search(prompt), task) for task, prompt in zip(drawn.tasks, drawn.prompts, strict=True)}
    for row in range(len(drawn)):
        trace = splitter.trace(drawn, row)
        _plant_response(trees[trace.task.id][0].root, splitter, trace.ids).right = trace.right
    for search, task in trees.values():
        if task.id in worked:
            _, ids = tokenise(bench.policy, search.prompt, worked[task.id])
            _plant_response(search.root, splitter, ids).right = True
    return [search for search, _ in trees.values()], [task for _, task in trees.values()]


def _plant_response(root: Node, splitter: StepSplitter, ids: Sequence[int]) -> Node:
    ends = [0, *(span.end for span in splitter.spans(ids))]
    return plant(root, [tuple(ids[start:end]) for start, end in zip(ends[:-1], ends[1:], strict=True)])


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """A JSONL file of the rows, whole or not at all; it may be empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def kept_row_list(path: Path) -> list[Row]:
    """The rows of such a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
