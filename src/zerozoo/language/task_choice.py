"""The problems of a run: loaded by name, with prompt, stop words and lengths of the model's row in the zoo table.

`config` is a recipe's Config; the functions read the fields of the same names.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from zerozoo.language.build import drop_long_prompts, open_verifier, prompt_maker
from zerozoo.language.evaluation import evaluate_tasks
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.samplers.interface import Decoding, Sampler
from zerozoo.language.zoo import recommended
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.load import GENERATED, load_task_set
from zerozoo.tasks.prompts import get_template
from zerozoo.tasks.splits import select_informative
from zerozoo.tasks.task import Task, TaskSet

AUTO = "auto"
AUTO_MINIMUM = 0.5  # least chance of a mixed group that `--split auto` keeps


def load_tasks_for(config: Any) -> TaskSet:
    """The task set a config names, before any model is loaded.

    Prompt and stop words: what the config says, else the model's row for problem files, else what the task recommends.
    Raises UserError for data that cannot be used, or when neither config nor model row names any.
    """
    row = recommended(config.model)
    data = config.data or (f"simplerl-zoo-{row.split}" if row else "")
    if not data:
        raise UserError(f"The model {config.model} has no row in the zoo table, so say what to train on with --data.")
    if "" in config.stop:
        raise UserError("An empty text in stop would end every response at once; leave it out.")
    tasks = load_task_set(
        data,
        level=config.level or None,
        split=None if config.split in ("", AUTO) else config.split,
        heldout=config.heldout or None,
        heldout_size=config.heldout_size or None,
        question_column=config.question_column or None,
        answer_column=config.answer_column or None,
        extractor=config.extractor or None,
        template=config.template or None,
    )
    stop = tasks.stop
    if row is not None and data.partition(":")[0] not in GENERATED:
        if not config.template:
            tasks = replace(tasks, template=row.template)
            stop = get_template(row.template).stop
        stop = (*row.stop, *stop)
    return replace(tasks, stop=tuple(dict.fromkeys((*config.stop, *stop))))


def fit_tasks(
    config: Any, tasks: TaskSet, policy: LanguageModel, sampler: Sampler, run: Run, ranks: Ranks = ALONE
) -> TaskSet:
    """Leave out what this model cannot use: prompts that are too long, and for `split auto` groups without signal."""
    longest = policy.max_context - config.max_new_tokens
    if longest < 1:
        raise UserError(
            f"max_new_tokens is {config.max_new_tokens}, but {config.model} has room for {policy.max_context} tokens,"
            " prompt included."
        )
    prompt = prompt_maker(policy, tasks.template)
    for note in tasks.notes:
        run.say(note)
    fitting: dict[str, tuple[Task, ...]] = {}
    for part, all_tasks in (("training", tasks.train), ("held-out", tasks.heldout)):
        kept, dropped = drop_long_prompts(all_tasks, prompt, min(longest, config.max_prompt_tokens))
        if dropped:
            run.say(f"{dropped} {part} problems were left out: their prompts are too long.")
        if not kept:
            raise UserError(f"Every {part} prompt is too long; raise max_prompt_tokens or lower max_new_tokens.")
        fitting[part] = kept
    tasks = replace(tasks, train=fitting["training"], heldout=fitting["held-out"])
    if config.split == AUTO:
        rates = pass_rates(config, tasks, policy, sampler, run, ranks)
        kept = select_informative(tasks.train, rates, config.samples_per_prompt, AUTO_MINIMUM)
        run.say(f"split auto: {len(kept)} of {len(tasks.train)} problems give mixed groups often enough.")
        tasks = replace(tasks, train=kept)
    return tasks


def pass_rates(
    config: Any, tasks: TaskSet, policy: LanguageModel, sampler: Sampler, run: Run, ranks: Ranks
) -> dict[str, float]:
    """Pass rate of the untrained model on every training problem, by task id; measured once, kept in the run directory.

    It draws `config.samples_per_prompt` responses to each.
    """
    path = run.path("pass_rates.json")
    known = ranks.from_first(lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)
    if known is not None:
        return dict(known)
    prompt = prompt_maker(policy, tasks.template)
    with open_verifier(tasks, ranks) as verifier:
        result = evaluate_tasks(
            sampler,
            tasks.train,
            [prompt(task) for task in tasks.train],
            verifier,
            Decoding(config.max_new_tokens, config.temperature, stop_strings=tasks.stop),
            Streams(run.seed).torch("pass-rates"),
            samples=config.samples_per_prompt,
        )
    means = result.correct.float().mean(1).tolist()
    rates = {task.id: mean for task, mean in zip(tasks.train, means, strict=True)}
    if run.writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rates), encoding="utf-8")
    return rates
