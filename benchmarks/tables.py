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


def rollouts() -> str:
    """New tokens a second."""
    rows = []
    for work, arms in cases("rollout"):
        ours = arms["zerozoo"]
        tokens = ours["tokens_per_second"] * ours["seconds"]
        others = [arms.get(name) for name in ("zerozoo", "zerozoo-int8", "transformers", "vllm")]
        times = {name: row["tokens_per_second"] for name, row in arms.items()}
        compared = [
            times["zerozoo"] / times["transformers"],
            times["zerozoo-int8"] / times["transformers"],
            times["zerozoo"] / times["vllm"] if "vllm" in times else None,
        ]
        rows.append([work, *(rate(row, tokens) if row else "" for row in others), *map(ratio, compared)])
    systems = ["zerozoo", "zerozoo, int8", "transformers", "vLLM"]
    return table(
        ["rows x new tokens", *systems, "to transformers", "int8 to transformers", "to vLLM"],
        sorted(rows, key=lambda row: [int(part) for part in reversed(row[0].split(" x "))]),
    )


def updates() -> str:
    """Seconds of one update."""
    rows = []
    for work, arms in cases("update"):
        chosen = [arms[name] for name in ("zerozoo", "zerozoo-int8", "transformers")]
        compared = [arms["transformers"]["seconds"] / row["seconds"] for row in chosen[:2]]
        rows.append(
            [work, *(spread(row["seconds"], row["range"], 1) for row in chosen), *(ratio(one) for one in compared)]
        )
    header = ["rows x (prompt + response)", "zerozoo", "zerozoo, int8", "transformers", "to it", "int8 to it"]
    return table(header, rows)


def memory() -> str:
    """Largest memory in GB."""
    names = ("zerozoo", "zerozoo-int8", "transformers", "vllm")
    rows = []
    for kind in ("rollout", "update"):
        for work, arms in cases(kind):
            held = [f"{arms[name]['peak_mb'] / 1000:.1f}" if name in arms else "" for name in names]
            share = arms["zerozoo"]["peak_mb"] / arms["transformers"]["peak_mb"]
            rows.append([f"{kind} {work}", *held, f"{share:.2f}"])
    return table(["", "zerozoo", "zerozoo, int8", "transformers", "vLLM", "share of transformers"], rows)


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


def training() -> str:
    """The quickstart beside TRL."""
    found = {**read("quickstart-bfloat16.json"), **read("quickstart.json")}
    arms = {
        "zerozoo, float32": found.get("zerozoo", []),
        "zerozoo, bfloat16": found.get("zerozoo-bfloat16", []),
        "zerozoo, all groups": found.get("zerozoo-all-groups", []),
        "TRL": found.get("trl", []),
    }
    arms = {f"{name}, {len(rows)} seeds": rows for name, rows in arms.items() if rows}
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
