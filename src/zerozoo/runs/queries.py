"""The query grammar of Open RL Benchmark: which tracked runs make the arms of a comparison.

A filter set is a list of texts. The first says where the runs are and what their columns are called, every other one
selects an arm:

    ?we=ENTITY&wpn=PROJECT&ceik=ENVIRONMENT_KEY&cen=ALGORITHM_KEY&xaxis=STEP_KEY&metric=METRIC
    ALGORITHM?tag=T&tag=T2&user=U&seed=1&seed=2&ANY_KEY=VALUE&cl=LEGEND

A run belongs to an arm if the algorithm key is ALGORITHM, it has ALL the tags, its user is one of the users, and each
further key has one of its values. Texts are URL-encoded: "+" or "%20" is a blank, "%26" is "&". In a legend "\\n" is a
new line. Without keys the reference's are taken; for zerozoo's own runs (`?wpn=zerozoo`) they are
`ceik=environment&cen=recipe&xaxis=step`, and the metric is what runs are judged by (`default_metric`).

Several filter sets may be compared, each with a list of environments of its own, for libraries name them differently:
row i of all lists is one panel.

Source: Huang et al. 2024, arXiv 2402.03046, openrlbenchmark/rlops.py. Its offline mode combines the user with Python's
`and`, which drops all conditions before it, and asks one row for all tags at once, which no run with two tags meets.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from zerozoo.runs.errors import UserError
from zerozoo.runs.records import PROJECT, Record, environment_field, label_runs, text_of
from zerozoo.runs.store import Store

NAMED_FIELDS = 3  # at most, in the name of an arm
NO_ENVIRONMENT = "all runs"  # the panel of runs whose config names none
WHERE = ("we", "wpn", "ceik", "cen", "xaxis", "metric")
# What language and control runs are judged by; the last where nothing was evaluated.
DEFAULT_METRICS = ("heldout/greedy_accuracy", "evaluation/return", "episode/return")


@dataclass(frozen=True)
class Selector:
    """One arm: `where` has the values that each further key may have."""

    algorithm: str
    tags: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    legend: str = ""


@dataclass(frozen=True)
class FilterSet:
    """Selectors over the runs of one project; an empty entity or project means any, an empty metric the default."""

    selectors: tuple[Selector, ...]
    entity: str = ""
    project: str = ""
    environment_key: str = "env_id"
    algorithm_key: str = "exp_name"
    step_key: str = "global_step"
    metric: str = "charts/episodic_return"


@dataclass(frozen=True)
class Arm:
    """Runs of one arm by panel, and where their numbers are. A panel without runs is there with an empty list."""

    name: str
    runs: Mapping[str, Sequence[Record]]
    metric: str
    step_key: str = "step"


def parse_filter_set(texts: Sequence[str]) -> FilterSet:
    """A filter set from its texts. Raises UserError for what is not of the grammar."""
    if len(texts) < 2:
        raise UserError("a filter set is '?METADATA' and then one text for every arm, such as 'ppo?tag=v1'")
    head, *others = texts
    before, mark, query = head.partition("?")
    if before or not mark:
        raise UserError(f"the first text of a filter set begins with '?' and has no name before it, unlike {head!r}")
    said: dict[str, str] = {}
    for key, value in _pairs(query, head):
        if key not in WHERE:
            near = difflib.get_close_matches(key, WHERE, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(WHERE)}"
            raise UserError(f"unknown key {key!r} in {head!r}; {hint}")
        if key in said:
            raise UserError(f"{key!r} can be given only once in {head!r}")
        said[key] = value
    names = ("entity", "project", "environment_key", "algorithm_key", "step_key", "metric")
    options = {name: said[key] for key, name in zip(WHERE, names, strict=True) if key in said}
    if said.get("wpn") == PROJECT:
        own = {"environment_key": "environment", "algorithm_key": "recipe", "step_key": "step", "metric": ""}
        options = {**own, **options}
    return FilterSet(tuple(parse_selector(text) for text in others), **options)


def parse_selector(text: str) -> Selector:
    """One arm from its text. Raises UserError without an algorithm, for two legends and for what is not KEY=VALUE."""
    algorithm, _, query = text.partition("?")
    if not algorithm:
        raise UserError(f"{text!r} names no algorithm; an arm is written as 'ppo?tag=v1'")
    values: dict[str, list[str]] = {}
    for key, value in _pairs(query, text):
        if value not in values.setdefault(key, []):
            values[key].append(value)
    tags, users, legends = (tuple(values.pop(key, ())) for key in ("tag", "user", "cl"))
    if len(legends) > 1:
        raise UserError(f"{text!r} has two legends")
    legend = legends[0].replace("\\n", "\n") if legends else ""
    return Selector(algorithm, tags, users, {key: tuple(found) for key, found in values.items()}, legend)


def arms_of_filters(
    store: Store, filter_sets: Sequence[FilterSet], environments: Sequence[Sequence[str]] = ()
) -> list[Arm]:
    """The arms of all filter sets with their runs by panel; a panel is called as the first set calls it.

    `environments` has one list for every filter set, or one for all; without any the panels are the environments that
    the runs have. Raises UserError for lists that do not match, and for two arms with one name.
    """
    if not environments:
        lists = [_found_environments(store, filter_sets)] * len(filter_sets)
    elif len(environments) == 1:
        lists = [list(environments[0])] * len(filter_sets)
    else:
        lists = [list(names) for names in environments]
    if len(lists) != len(filter_sets):
        raise UserError(f"{len(filter_sets)} filter sets need one list of environments or as many, not {len(lists)}")
    if len({len(names) for names in lists}) > 1:
        lengths = ", ".join(str(len(names)) for names in lists)
        raise UserError(f"row i of every list of environments is one panel, but they have {lengths} environments")
    arms = []
    for filter_set, names in zip(filter_sets, lists, strict=True):
        rows = list(zip(lists[0], names, strict=True))
        found = [
            {panel: select_runs(store, filter_set, selector, name) for panel, name in rows}
            for selector in filter_set.selectors
        ]
        metric = filter_set.metric or default_metric([r for runs in found for panel in runs.values() for r in panel])
        named = zip(filter_set.selectors, found, strict=True)
        arms += [Arm(_name(selector), runs, metric, filter_set.step_key) for selector, runs in named]
    repeated = {arm.name for arm in arms if sum(other.name == arm.name for other in arms) > 1}
    if repeated:
        raise UserError(f"two arms are called {min(repeated)!r}: tell them apart with cl=LEGEND")
    return arms


def select_runs(store: Store, filter_set: FilterSet, selector: Selector, environment: str | None) -> list[Record]:
    """The runs of one arm, in one environment or in all."""
    fields: dict[str, Sequence[str]] = {filter_set.algorithm_key: (selector.algorithm,)}
    if environment is not None:
        fields = {**fields, filter_set.environment_key: (environment,)}
    twice = fields.keys() & selector.where.keys()
    if twice:
        raise UserError(f"{min(twice)!r} is already given by the filter set, so the arm {_name(selector)!r} cannot")
    return store.select(
        tags=selector.tags,
        users=selector.users,
        fields={**fields, **selector.where},
        entity=filter_set.entity,
        project=filter_set.project,
    )


def default_metric(records: Sequence[Record]) -> str:
    """The first of DEFAULT_METRICS that one of the runs has logged, or the first of all."""
    logged = {name for record in records for name in record.final}
    return next((name for name in DEFAULT_METRICS if name in logged), DEFAULT_METRICS[0])


def group_runs(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs of one recipe whose configs differ in seed and environment alone, by a name that tells them apart."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps([record.recipe, _arm_config(record)], sort_keys=True), []).append(record)
    configs = [{"recipe": group[0].recipe, **_arm_config(group[0])} for group in groups.values()]
    fields = [
        name
        for name in dict.fromkeys(name for config in configs for name in config)
        if len({text_of(config[name]) if name in config else "absent" for config in configs}) > 1
    ]
    if len(configs) == 1:
        names = [records[0].recipe or "runs"]
    elif len(fields) <= NAMED_FIELDS:
        names = [_arm_name(config, fields) for config in configs]
    else:
        names = label_runs([group[0] for group in groups.values()])
    return dict(zip(names, groups.values(), strict=True))


def arms_of_runs(records: Sequence[Record], metric: str, step: str = "step") -> list[Arm]:
    """`group_runs` as arms, with one panel for every environment."""
    panels = list(dict.fromkeys(record.environment or NO_ENVIRONMENT for record in records))
    return [
        Arm(name, {p: [r for r in group if (r.environment or NO_ENVIRONMENT) == p] for p in panels}, metric, step)
        for name, group in group_runs(records).items()
    ]


def _found_environments(store: Store, filter_sets: Sequence[FilterSet]) -> list[str]:
    found = set()
    for filter_set in filter_sets:
        for selector in filter_set.selectors:
            for record in select_runs(store, filter_set, selector, None):
                found.add(str(record.fields().get(filter_set.environment_key, "")))
    named = sorted(found - {""})
    if not named:
        raise UserError("no run meets the filters; `zerozoo runs list` shows what there is")
    return named


def _name(selector: Selector) -> str:
    """The legend, or the algorithm with what selects its runs."""
    if selector.legend:
        return selector.legend
    parts = [*selector.tags, *selector.users]
    parts += [f"{key}={','.join(values)}" for key, values in selector.where.items()]
    return f"{selector.algorithm} ({', '.join(parts)})" if parts else selector.algorithm


def _arm_config(record: Record) -> dict[str, Any]:
    dropped = {"seed", environment_field(record.config)}
    return {name: value for name, value in record.config.items() if name not in dropped}


def _arm_name(config: Mapping[str, Any], fields: Sequence[str]) -> str:
    parts = [config["recipe"]] if "recipe" in fields else []
    parts += [f"{n}={text_of(config[n]) if n in config else 'absent'}" for n in fields if n != "recipe"]
    return ", ".join(parts)


def _pairs(query: str, text: str) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise UserError(f"{text!r} has something between its '&' that is not KEY=VALUE ({error})") from error
    for key, value in pairs:
        if not key or not value:
            raise UserError(f"{text!r} has a key without a value, or a value without a key")
    return pairs
