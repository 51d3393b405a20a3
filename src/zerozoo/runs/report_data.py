"""What the page of runs shows, as plain JSON values. Read without torch; what is damaged is left out and said.

A run's entry has what it is, its config, its metrics as series, the first and the last of its results, its claim, its
samples and its episodes. Samples are kept by columns, for a page with 100,000 of them holds every repeated text once:

    {"count": n, "columns": {name: column}}     a column is one of
    {"numbers": [n numbers or null]}
    {"texts": [n texts or null]}
    {"choices": [texts or booleans], "at": [n places in choices, -1 for none]}

The columns of the samples and their tokens are apart: they are most of the data, and the page opens without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zerozoo.runs.figures import FIGURES
from zerozoo.runs.records import METRICS, RUNTIME, Record, flatten, read_rows, seconds_of, text_of
from zerozoo.runs.report_claim import claim_entry
from zerozoo.runs.statistics import mean_interval

SAMPLES = "samples.jsonl"
SAMPLES_SHOWN = 100_000
POINTS = 4_000  # of a curve; of a longer one the extremes of equal parts are kept
HEADLINES = 6  # metrics that the page shows at first: the first of these that were logged, then those of the figures
FIRST_LOOK = (
    "heldout/greedy_accuracy",
    "heldout/sampled_accuracy",
    "evaluation/return",
    "evaluation/success",
    "episode/return",
    "reward",
    "response/length",
    "groups/informative",
    "policy/entropy",
    "policy/kl",
)
OUTCOMES = ("heldout/", "evaluation/", "final/", "success/")  # a run's results begin with one of these
MAIN_OUTCOMES = ("accuracy", "/return", "/success", "/score")  # come first
FALLBACK_OUTCOMES = ("reward", "correct", "episode/return", "response/length")
SHARES = ("accuracy", "_ratio", "success", "correct", "reflection", "informative", "all_right", "all_wrong", "fraction")
TEXTS, EPISODES = ("response", "question", "prompt"), ("return", "episode")  # what makes a row a sample, an episode
TOKENS, LOGPROBS = "tokens", "logprobs"
DECIMALS = 3  # of log-probs on the page


def run_entry(
    record: Record, label: str, results: Path, most_samples: int = SAMPLES_SHOWN
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's entry and, apart from it, what the page unpacks later, all as JSON can hold it.

    Apart are "samples", the columns of the responses, and "tokens"; what the run has none of is not there. `results` is
    the folder with the result files of claims. At most `most_samples` rows of samples.jsonl are shown, evenly spread
    over the file.
    """
    rows, _ = read_rows(record.directory / METRICS)  # `record` has the notes
    lines, notes = read_samples(record.directory / SAMPLES)
    samples = [flatten(row) for row in lines if any(name in row for name in TEXTS)]
    episodes = [flatten(row) for row in lines if not any(name in row for name in TEXTS) and is_episode(row)]
    others = len(lines) - len(samples) - len(episodes)
    if others:
        notes.append(f"{others} rows of {SAMPLES} are neither responses nor episodes and were left out")
    by_step, episodes_by_step = summarise_samples(samples), summarise_episodes(episodes)
    shown = [spread(samples, most_samples, "responses", notes), spread(episodes, most_samples, "episodes", notes)]
    tokens, rest = split_tokens(shown[0])
    later = {"samples": columns(rest) if rest else None, "tokens": tokens}
    claim, remarks = claim_entry(record, results)
    entry = {
        "label": label,
        "directory": str(record.directory),
        "recipe": record.recipe,
        "seed": record.seed,
        "status": record.status,
        "steps": record.steps,
        "tags": list(record.tags),
        "began": record.began,
        "seconds": math.fsum(x for name in ("seconds/step", "seconds/evaluate") for x in _numbers(rows, name)),
        "config": {name: text_of(value) for name, value in flatten(record.config).items()},
        "versions": {name: text_of(value) for name, value in flatten(record.versions).items()},
        "metrics": series(rows, record.began, notes),
        "headlines": headlines(record.final),
        "shares": [name for name in record.final if is_share(name)],
        "intervals": {name: ends for name in record.final if (ends := interval_names(name)) is not None},
        "outcomes": outcomes(rows),
        "claim": claim,
        "samples": {"count": len(rest), "by_step": by_step, "total": len(samples)},
        "episodes": {**columns(shown[1]), "by_step": episodes_by_step, "total": len(episodes)},
        "notes": [*record.notes, *notes, *remarks],
    }
    return finite(entry), {name: part for name, part in later.items() if part is not None}


def read_samples(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable rows of a samples.jsonl, and a sentence for what was left out. A missing file has no rows."""
    rows: list[dict[str, Any]] = []
    damaged: list[int] = []
    half = False
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                half = not line.endswith(b"\n")
                row = None if half else _parsed(line)
                if row is not None:
                    rows.append(row)
                elif line.strip() and not half:
                    damaged.append(number)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return rows, [f"{path.name} cannot be read ({error.strerror})"]
    notes = []
    if len(damaged) == 1:
        notes.append(f"line {damaged[0]} of {path.name} cannot be read and was left out")
    elif damaged:
        where = f"{len(damaged)} lines of {path.name}, the first is line {damaged[0]},"
        notes.append(f"{where} cannot be read and were left out")
    if half:
        notes.append(f"the last row of {path.name} is half-written and was left out")
    return rows, notes


def is_episode(row: Mapping[str, Any]) -> bool:
    return all(name in row for name in EPISODES)


def spread(rows: list[dict[str, Any]], most: int, kind: str, notes: list[str]) -> list[dict[str, Any]]:
    """At most `most` of the rows, evenly over the file."""
    if len(rows) <= most:
        return rows
    notes.append(f"of {len(rows)} {kind} {most} are shown, evenly spread over the run; --samples changes that")
    return [rows[index * len(rows) // most] for index in range(most)]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows by columns, in the order in which the names come up."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {"count": len(rows), "columns": {name: column([row.get(name) for row in rows]) for name in names}}


def column(values: Sequence[Any]) -> dict[str, Any]:
    """One column in its shortest form; see the module's text. Lists are shown as their JSON."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, bool) for value in present):
        return _choices(values)
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
        return {"numbers": [short(value) for value in values]}
    texts = [value if value is None else text_of(value) for value in values]
    return _choices(texts) if len(set(texts)) <= len(texts) / 2 + 1 else {"texts": texts}


def split_tokens(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The tokens of all rows behind one another (None if no row has any), and the rows without them.

    {"words": distinct tokens, "token": places in words, "logprob": rounded numbers, "start": n + 1 places}. Lists that
    are of different lengths or not of texts and numbers are no tokens: they stay in their row, to be shown as they are.
    """
    words: dict[str, int] = {}
    token: list[int] = []
    logprob: list[float | None] = []
    start, rest = [0], []
    for row in rows:
        texts: Any = row.get(TOKENS)
        numbers: Any = row.get(LOGPROBS)
        dropped: tuple[str, ...] = ()
        if _are_tokens(texts, numbers):
            token += [words.setdefault(text, len(words)) for text in texts]
            logprob += [None if number is None else short(round(number, DECIMALS)) for number in numbers]
            dropped = (TOKENS, LOGPROBS)
        start.append(len(token))
        rest.append({name: value for name, value in row.items() if name not in dropped})
    found = {"words": list(words), "token": token, "logprob": logprob, "start": start}
    return (found if token else None), rest


def summarise_samples(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """By phase: the steps in order, and for each how many rows it has, their mean reward and length, and the shares
    that are right and that were cut off; null where nothing says so."""
    table: dict[str, dict[str, list[Any]]] = {}
    for phase, by_step in _grouped(rows).items():
        table[phase] = {"step": list(by_step), "count": [len(group) for group in by_step.values()]}
        for name, measure in (
            ("reward", lambda group: _mean(group, "reward")),
            ("length", lambda group: _mean(group, "length")),
            ("right", lambda group: _share(group, "verdict", "right")),
            ("clipped", lambda group: _share(group, "finish", "length")),
        ):
            table[phase][name] = [measure(group) for group in by_step.values()]
    return table


def summarise_episodes(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """By phase: the steps in order, number of episodes, mean return with its 95 % interval, lowest and highest."""
    table: dict[str, dict[str, list[Any]]] = {}
    for phase, by_step in _grouped(rows).items():
        found: dict[str, list[Any]] = {name: [] for name in ("step", "count", "mean", "low", "high", "least", "most")}
        for step, group in by_step.items():
            returns = _numbers(group, "return")
            if not returns:
                continue
            interval = mean_interval(returns)
            values = (step, len(returns), interval.value, interval.low, interval.high, min(returns), max(returns))
            for name, value in zip(found, values, strict=True):
                found[name].append(value)
        table[phase] = found
    return table


def series(rows: Sequence[Mapping[str, Any]], began: float | None, notes: list[str]) -> dict[str, Any]:
    """{"step" and "seconds" since the start of every row, "series": {metric: {"at": rows (null: all), "values"}}}."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "time")]
    found: dict[str, Any] = {}
    thinned = 0
    for name in names:
        at = [index for index, row in enumerate(rows) if _is_number(row.get(name))]
        if not at or name == RUNTIME:
            continue
        kept = thin([float(rows[index][name]) for index in at])
        thinned += len(kept) < len(at)
        at = [at[place] for place in kept]
        values = [short(rows[index][name]) for index in at]
        found[name] = {"at": None if len(at) == len(rows) else at, "values": values}
    if thinned:
        notes.append(f"{thinned} curves with more than {POINTS} points are drawn by the extremes of equal parts")
    seconds = [round(seconds_of(row, began), 3) for row in rows]
    return {"step": [short(row["step"]) for row in rows], "seconds": seconds, "series": found}


def thin(values: Sequence[float], most: int = POINTS) -> list[int]:
    """Places of at most `most` values: the lowest and the highest of equal parts, so that no spike is lost."""
    if len(values) <= most:
        return list(range(len(values)))
    parts = (most - 2) // 2
    kept = {0, len(values) - 1}
    for part in range(parts):
        places = range(part * len(values) // parts, (part + 1) * len(values) // parts)
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    return sorted(kept)


def headlines(final: Mapping[str, float | None]) -> list[str]:
    """The metrics to look at first."""
    drawn = [curve.key for _, panels in FIGURES.values() for panel in panels for curve in panel.curves]
    known = [name for name in dict.fromkeys([*FIRST_LOOK, *drawn]) if name in final]
    ends = interval_ends(final)
    rest = [name for name in final if name not in known and name not in ends and not name.startswith("seconds/")]
    return [*known, *rest][:HEADLINES]


def outcomes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first and the last value of every result, with the interval where one was logged, and whether it is a share.

    Results are metrics of `OUTCOMES`; a run without any has those of `FALLBACK_OUTCOMES`.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    ends = interval_ends(names)
    chosen = [name for name in names if name.startswith(OUTCOMES) and name not in ends]
    table = []
    for name in chosen or [name for name in FALLBACK_OUTCOMES if name in names]:
        having = [row for row in rows if _is_number(row.get(name))]
        if having:
            pair = [_with_interval(row, name) for row in (having[0], having[-1])]
            table.append({"name": name, "share": is_share(name), "first": pair[0], "last": pair[1]})
    return sorted(table, key=lambda one: not one["name"].endswith(MAIN_OUTCOMES))


def is_share(name: str) -> bool:
    """Whether a metric is a share of something, shown in percent."""
    return name.endswith(SHARES) or name.startswith("success/")


def interval_names(name: str) -> tuple[str, str] | None:
    """The metrics that bound `name`: "heldout/greedy_accuracy" has heldout/greedy_low and _high."""
    if name.endswith("_accuracy"):
        stem = name.removesuffix("accuracy")
        return stem + "low", stem + "high"
    return ("evaluation/low", "evaluation/high") if name == "evaluation/return" else None


def interval_ends(names: Iterable[str]) -> set[str]:
    """The names that bound another one."""
    known = set(names)
    pairs = [interval_names(name) for name in known]
    return {end for pair in pairs if pair for end in pair if end in known}


def short(value: Any) -> Any:
    """A number in its shortest spelling: 1 for 1.0; null for what is not finite."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def finite(value: Any) -> Any:
    """`value` with null for every number that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    places: dict[Any, int] = {}
    at = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    return {"choices": list(places), "at": at}


def _are_tokens(texts: Any, numbers: Any) -> bool:
    return (
        isinstance(texts, list)
        and isinstance(numbers, list)
        and len(texts) == len(numbers) > 0
        and all(isinstance(text, str) for text in texts)
        and all(number is None or _is_number(number) for number in numbers)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, list[Mapping[str, Any]]]]:
    """Rows by phase and step, steps in order; rows without a step are in none."""
    table: dict[str, dict[float, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if _is_number(row.get("step")):
            table.setdefault(str(row.get("phase", "")), {}).setdefault(short(row["step"]), []).append(row)
    return {phase: dict(sorted(by_step.items())) for phase, by_step in table.items()}


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if _is_number(row.get(name))]


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _numbers(rows, name)
    return math.fsum(values) / len(values) if values else None


def _share(rows: Sequence[Mapping[str, Any]], name: str, value: str) -> float | None:
    told = [row[name] for row in rows if row.get(name) is not None]
    return sum(one == value for one in told) / len(told) if told else None


def _with_interval(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    low, high = (row.get(end) for end in interval_names(name) or ("", ""))
    return {"step": row["step"], "value": row[name], "low": low, "high": high}
