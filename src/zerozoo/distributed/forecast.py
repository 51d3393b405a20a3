"""Predicts how fast a cluster trains from measured times: the command line of `simulation`.

    python -m zerozoo.distributed.forecast --workers 1 2 4 --tokens-per-second 900 --update-seconds 30

A line for every number of workers and every lag: seconds a step; response tokens a second; share of the time in which
the learner waits for responses; share in which a worker writes; mean and highest age of the responses in updates; lost
workers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from zerozoo.distributed.simulation import Cluster, Forecast, Times, Work, simulate
from zerozoo.runs.errors import UserError

SEVERAL = ("workers", "max_lag")
COLUMNS = {
    "workers": ">8",
    "lag": ">5",
    "s/step": ">10.1f",
    "tokens/s": ">12,.0f",
    "waits": ">8.0%",
    "writing": ">9.0%",
    "age": ">7.2f",
    "highest": ">9",
    "lost": ">6",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m zerozoo.distributed.forecast",
        description="Predict how fast a cluster trains, from measured times.",
        allow_abbrev=False,
    )
    for one in (*fields(Cluster), *fields(Work), *fields(Times)):
        default, several = one.default, one.name in SEVERAL
        parser.add_argument(
            "--" + one.name.replace("_", "-"),
            type=type(default),
            nargs="+" if several else None,
            default=[default] if several else default,
            help=f"{one.metadata['text']} (default {default:g})",
        )
    parser.add_argument("--seed", type=int, default=0, help="of lengths, slow workers and losses (default 0)")
    return parser


def forecasts(options: dict[str, Any]) -> list[tuple[Forecast, int]]:
    """A forecast and its lag for every number of workers and every lag. Raises UserError."""
    if options["seed"] < 0:
        raise UserError(f"--seed is {options['seed']}, but must not be negative.")

    def take(kind: type[Any], **values: int) -> Any:
        return kind(**{one.name: options[one.name] for one in fields(kind)} | values)

    times = take(Times)
    return [
        (simulate(take(Work, max_lag=lag), times, take(Cluster, workers=workers), options["seed"]), lag)
        for workers in options["workers"]
        for lag in options["max_lag"]
    ]


def table(results: Sequence[tuple[Forecast, int]]) -> str:
    """The lines that are printed."""
    lines = ["".join(f"{name:{form.partition('.')[0].strip(',%f')}}" for name, form in COLUMNS.items())]
    for result, lag in results:
        values = (
            *(result.workers, lag, result.seconds_per_step, result.tokens_per_second, result.waiting),
            *(result.utilisation, sum(result.ages) / len(result.ages), max(result.ages), result.lost),
        )
        lines.append("".join(f"{value:{form}}" for value, form in zip(values, COLUMNS.values(), strict=True)))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 for numbers that cannot be."""
    try:
        print(table(forecasts(vars(_parser().parse_args(arguments)))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
