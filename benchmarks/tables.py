"""The tables of docs/speed.md, from the files in results/.

    python benchmarks/tables.py            writes them into the page, between the lines <!-- NAME --> and <!-- end -->

Rates and seconds are medians, with the range of the repeats in brackets. A test compares the page with the files.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "speed.md"
Rows = list[list[str]]
SYSTEMS = {  # by name of the arm
    "zerozoo": "zerozoo",
    "zerozoo-int8": "zerozoo, int8",
    "transformers": "transformers",
    "vllm": "vLLM",
}


def read(name: str) -> dict[str, Any]:
    """A results file; empty when there is none."""
    path = ROOT / "results" / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def table(header: Sequence[str], rows: Rows) -> str:
    """Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(middle: float, values: Sequence[float], digits: int = 0) -> str:
    """`5.1 (4.9 to 6.0)`."""
    low, high = min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(value: float | None) -> str:
    """How many times; empty where there is nothing to compare with."""
    return "" if value is None else f"{value:.1f}"


def cases(kind: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(work without its kind, arms) of the language benchmark, long responses of the tiny model left out."""
    found = read("bench-language.json")
    short = [name for name in found if name.startswith(kind) and found[name]["model"] != "tiny"]
    return [(name.removeprefix(kind).strip(), found[name]["arms"]) for name in short]


def rate(row: Mapping[str, Any], tokens: float) -> str:
    """Tokens a second of an arm."""
    return spread(row["tokens_per_second"], [tokens / second for second in row["range"]])


def systems(kind: str) -> list[str]:
    """Those of `SYSTEMS` that took part in any case of a kind."""
    return [name for name in SYSTEMS if any(name in arms for _, arms in cases(kind))]


def times(arms: Mapping[str, Any], ours: str, other: str) -> str:
    """How many times as fast one of ours is as another."""
    there = ours in arms and other in arms
    return ratio(arms[other]["seconds"] / arms[ours]["seconds"] if there else None)


def compared(kind: str) -> list[tuple[str, str, str]]:
    """(ours, another system, header) of the ratios that a table of a kind has."""
    there = systems(kind)
    return [
        (ours, other, f"{'int8 to' if 'int8' in ours else 'to'} {SYSTEMS[other]}")
        for ours, other in (("zerozoo", "transformers"), ("zerozoo-int8", "transformers"), ("zerozoo", "vllm"))
        if ours in there and other in there
    ]


def rollouts() -> str:
    """New tokens a second."""
    rows = []
    for work, arms in cases("rollout"):
        tokens = arms["zerozoo"]["tokens_per_second"] * arms["zerozoo"]["seconds"]
        rates = [rate(arms[name], tokens) if name in arms else "" for name in systems("rollout")]
        rows.append([work, *rates, *(times(arms, ours, other) for ours, other, _ in compared("rollout"))])
    header = [SYSTEMS[name] for name in systems("rollout")] + [title for _, _, title in compared("rollout")]
    rows.sort(key=lambda row: [int(part) for part in reversed(row[0].split(" x "))])
    return table(["rows x new tokens", *header], rows)


def updates() -> str:
    """Seconds of one update."""
    rows = []
    for work, arms in cases("update"):
        seconds = [
            spread(arms[name]["seconds"], arms[name]["range"], 1) if name in arms else "" for name in systems("update")
        ]
        rows.append([work, *seconds, *(times(arms, ours, other) for ours, other, _ in compared("update"))])
    header = [SYSTEMS[name] for name in systems("update")] + [title for _, _, title in compared("update")]
    return table(["rows x (prompt + response)", *header], rows)


def memory() -> str:
    """Largest memory in GB."""
    names = [name for name in SYSTEMS if name in {*systems("rollout"), *systems("update")}]
    rows = []
    for kind in ("rollout", "update"):
        for work, arms in cases(kind):
            held = [f"{arms[name]['peak_mb'] / 1000:.1f}" if name in arms else "" for name in names]
            share = arms["zerozoo"]["peak_mb"] / arms["transformers"]["peak_mb"]
            rows.append([f"{kind} {work}", *held, f"{share:.2f}"])
    return table(["", *(SYSTEMS[name] for name in names), "share of transformers"], rows)


def growth() -> str:
    """Seconds and memory of long responses of the tiny model."""
    found = read("bench-language.json")
    rows: Rows = []
    for name, case in found.items():
        if case["model"] == "tiny":
            kind, new = name.split()[0], int(name.rstrip(")").split()[-1])
            row = case["arms"]["zerozoo"]
            per_token = row["seconds"] / new * 1000
            seconds = spread(row["seconds"], row["range"], 2)
            rows.append([kind, f"{new:,}", seconds, f"{per_token:.2f}", f"{row['peak_mb']:,.0f}"])
    return table(["", "tokens of a response", "seconds", "ms by length", "memory, MB"], rows)


QUICKSTART = {
    "zerozoo": "zerozoo, float32",
    "zerozoo-bfloat16": "zerozoo, bfloat16",
    "zerozoo-all-groups": "zerozoo, all groups",
    "trl": "TRL",
}


def processor(found: Mapping[str, Any]) -> str:
    """Its name without marks."""
    return str(found["machine"]["cpu"]).replace("(R)", "").replace("Processor", "").strip()


def training() -> str:
    """The quickstart beside TRL."""
    arms: dict[str, list[Any]] = {}
    for file in ("quickstart.json", "quickstart-bfloat16.json", "quickstart-avx2.json"):
        found = read(file)
        for name, label in QUICKSTART.items():
            known = file == "quickstart-bfloat16.json" and name == "zerozoo"  # two seeds beside the three of bfloat16
            if found.get(name) and not known:
                arms[f"{label}, {len(found[name])} seeds, {processor(found)}"] = found[name]
    lines: list[tuple[str, str, int, float]] = [
        ("seconds of a step", "step_seconds", 1, 1),
        ("seconds of training until greedy accuracy is 50 %", "seconds_to_050", 0, 1),
        ("seconds from the start until the first step is shown", "first_step_seconds", 0, 1),
        ("greedy accuracy after 40 steps, %, mean", "after_greedy", 1, 100),
        ("peak memory, GB", "peak_rss_mb", 1, 0.001),
    ]
    rows = []
    for label, field, digits, unit in lines:
        cells = []
        for seeds in arms.values():
            values = [row[field] * unit for row in seeds if row.get(field) is not None]
            middle = statistics.median if field != "after_greedy" else statistics.fmean
            cells.append(spread(middle(values), values, digits) if len(values) == len(seeds) else "")
        if any(cells):
            rows.append([label, *cells])
    commits = [sorted({row["commit"][:7] for row in seeds}) for seeds in arms.values()]
    return table(["", *arms], [*rows, ["commit", *(", ".join(ones) for ones in commits)]])


def control() -> str:
    """Updates a second."""
    rows = []
    for name, row in read("bench-control.json").get("updates", {}).items():
        rates = row["updates_per_second"]
        systems = ("zerozoo", "plain", "d3rlpy", "stable-baselines3")
        cells = [
            spread(rates[one]["median"], [rates[one]["low"], rates[one]["high"]]) if one in rates else ""
            for one in systems
        ]
        rows.append([name, *cells, *(ratio(row["ratio"].get(one)) for one in systems[1:])])
    header = ["agent, layers", "zerozoo", "plain PyTorch", "d3rlpy", "stable-baselines3"]
    return table([*header, "to plain", "to d3rlpy", "to SB3"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "training": training,
    "rollouts": rollouts,
    "updates": updates,
    "memory": memory,
    "growth": growth,
    "control": control,
}


def filled(page: str) -> str:
    """The page with its tables as the results say. ValueError for a place whose table nobody makes."""
    places = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    unknown = {name for _, name, _ in places.findall(page)} - TABLES.keys()
    if unknown:
        raise ValueError(f"{PAGE.name} has places for unknown tables: {sorted(unknown)}")
    return places.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
