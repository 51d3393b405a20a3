"""The model of a cluster: closed forms, cases by hand, everything once, and what the guide says it predicts."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zerozoo.distributed.forecast import main
from zerozoo.distributed.simulation import Cluster, Forecast, Times, Work, simulate
from zerozoo.runs.errors import UserError

GUIDE = Path(__file__).parents[2] / "docs" / "cluster.md"
WORK = Work(steps=6, prompts_per_step=8, samples_per_prompt=2, response_tokens=10)  # 160 tokens a step
TIMES = Times(tokens_per_second=4, update_seconds=15)  # one worker writes for 40 s


def durations(result: Forecast) -> list[float]:
    """Seconds from the end of the step before to the end of each step."""
    return np.diff(result.ends, prepend=0.0).tolist()


def test_one_worker_writes_then_the_learner_updates() -> None:
    result = simulate(WORK, TIMES, Cluster())
    assert durations(result) == pytest.approx([55] * 6)
    assert result.waits == pytest.approx([40] * 6)
    assert result.waiting == pytest.approx(40 / 55)
    assert result.utilisation == pytest.approx(40 / 55)
    assert result.tokens_per_second == pytest.approx(160 / 55)
    assert result.ages == [0] * 6


@pytest.mark.parametrize("update", [15, 70])
def test_with_a_lag_a_step_takes_the_longer_of_writing_and_updating(update: float) -> None:
    result = simulate(replace(WORK, max_lag=1), replace(TIMES, update_seconds=update), Cluster())
    assert durations(result) == pytest.approx([40 + update] + [max(40, update)] * 5)


def test_every_part_of_a_chunk_takes_its_time() -> None:
    """Two workers, 8 chunks of one prompt with 2 responses of 10 tokens, 4 chunks each."""
    times = Times(tokens_per_second=4, token_seconds=0.3, prompt_tokens_per_second=7, chunk_seconds=2, update_seconds=1)
    result = simulate(replace(WORK, prompt_tokens=21), times, Cluster(2))
    assert [len(step) for step in result.chunks] == [8] * 6
    assert durations(result) == pytest.approx([4 * (2 + 3 + 3 + 5) + 1] * 6)


def test_reading_is_paid_once_for_a_group_and_chunks_may_be_uneven() -> None:
    """One worker, 10 prompts: chunks of 3, 3, 3 and 1 prompts."""
    work = Work(steps=1, prompts_per_step=10, samples_per_prompt=5, prompt_tokens=4)
    result = simulate(work, Times(prompt_tokens_per_second=2, token_seconds=1), Cluster())
    assert len(result.chunks[0]) == 4
    assert result.seconds == pytest.approx(10 * 2 + 4 * 1)


def test_few_rows_at_once_make_more_chunks() -> None:
    result = simulate(replace(WORK, rows_at_once=2), Times(chunk_seconds=1), Cluster())
    assert [len(step) for step in result.chunks] == [8] * 6
    assert durations(result) == pytest.approx([8] * 6)


@pytest.mark.parametrize("lag", [0, 1])
def test_with_any_number_of_workers_the_longest_chunk_is_what_is_waited_for(lag: int) -> None:
    work = replace(WORK, response_spread=1.0, max_lag=lag)
    result = simulate(work, TIMES, Cluster(1000))
    # The same gamma distribution, drawn as the docstring says: by seed and step.
    longest = [
        (np.random.default_rng([0, 1, step]).gamma(1, 10, (8, 2)).sum(1)).max() / 4 for step in range(work.steps)
    ]
    if lag:  # handed over when the step before the last one had ended
        expected, handed = [], [0.0, 0.0]
        for step in range(work.steps):
            begun = expected[-1] if expected else 0.0
            expected.append(max(begun, handed[step] + longest[step]) + 15)
            handed.append(expected[-1])
        assert result.ends == pytest.approx(expected)
    else:
        assert durations(result) == pytest.approx([one + 15 for one in longest])


def test_the_longest_response_of_a_chunk_counts_for_all_of_it() -> None:
    """One worker, 4 chunks of 2 prompts, 4 responses in each."""
    result = simulate(replace(WORK, response_spread=1.0), Times(token_seconds=2), Cluster())
    drawn = [np.random.default_rng([0, 1, step]).gamma(1, 10, (8, 2)) for step in range(WORK.steps)]
    assert durations(result) == pytest.approx([2 * one.reshape(4, 4).max(1).sum() for one in drawn])


@pytest.mark.parametrize("update", [0.0, 15.0, 100.0])
@pytest.mark.parametrize("workers", [1, 3, 50])
def test_the_age_is_the_lag_whoever_is_slow(workers: int, update: float) -> None:
    cluster = Cluster(workers, slow_share=0.4, slow_factor=5)
    result = simulate(replace(WORK, max_lag=2, steps=7), replace(TIMES, update_seconds=update), cluster)
    assert result.ages == [0, 1, 2, 2, 2, 2, 2]


def test_the_last_steps_draw_nothing_beyond_the_end() -> None:
    result = simulate(replace(WORK, max_lag=9, steps=3), TIMES, Cluster())
    assert len(result.chunks) == len(result.ends) == 3
    assert result.ages == [0, 1, 2]


def test_weights_are_fetched_once_for_a_version_and_node_one_after_the_other() -> None:
    """8 chunks of 5 s; the second worker begins 3 s after the first, and the first writes 4 chunks in 23 s."""
    times = replace(TIMES, weight_bytes=30, bytes_per_second=10)
    apart = simulate(WORK, times, Cluster(2))
    assert apart.fetches == 2 * 6
    assert apart.fetching == pytest.approx(6 * (3 + 6))
    assert durations(apart) == pytest.approx([6 + 4 * 5 + 15] * 6)
    together = simulate(WORK, times, Cluster(2, workers_per_node=2))
    assert together.fetches == 6
    assert together.fetching == pytest.approx(6 * (3 + 3))
    assert durations(together) == pytest.approx([3 + 4 * 5 + 15] * 6)


def test_twice_the_bandwidth_halves_the_time_of_transfers() -> None:
    slow = Times(weight_bytes=100, bytes_per_second=5)
    one, two = (simulate(WORK, times, Cluster(8)) for times in (slow, replace(slow, bytes_per_second=10)))
    assert one.seconds == pytest.approx(6 * 8 * 20)
    assert two.seconds == pytest.approx(one.seconds / 2)


def test_the_learner_hands_out_one_chunk_after_the_other() -> None:
    result = simulate(WORK, Times(hand_seconds=3), Cluster(1000))
    assert durations(result) == pytest.approx([8 * 3] * 6)


def test_a_slow_worker_writes_fewer_chunks() -> None:
    """Two workers, 8 chunks of 5 s; one takes 40 s for each: it writes one while the other writes 7."""
    result = simulate(WORK, TIMES, Cluster(2, slow_share=0.5, slow_factor=8))
    assert durations(result) == pytest.approx([40 + 15] * 6)
    assert result.writing == pytest.approx(6 * (40 + 35))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lag", [0, 2])
def test_every_chunk_is_written_once_though_workers_fail(lag: int, seed: int) -> None:
    work = replace(WORK, response_spread=0.5, prompts_per_step=40, max_lag=lag)
    cluster = Cluster(5, failure_seconds=150, restart_seconds=7)
    result = simulate(work, TIMES, cluster, seed)
    assert result.lost > 0
    assert [len(step) for step in result.chunks] == [20] * 6
    assert all(count == 1 for step in result.chunks for count in step)
    without = simulate(work, TIMES, replace(cluster, failure_seconds=0), seed)
    assert without.lost == 0
    assert result.tokens == without.tokens
    assert result.writing == pytest.approx(without.writing)
    assert result.writing == pytest.approx(result.tokens / 4)
    assert result.seconds > without.seconds
    assert simulate(work, TIMES, replace(cluster, restart_seconds=200), seed).seconds > result.seconds


def test_a_chunk_that_costs_four_workers_ends_the_run() -> None:
    with pytest.raises(UserError, match=r"^4 workers were lost over one chunk, .* that take 10 s\.$"):
        simulate(WORK, TIMES, Cluster(failure_seconds=0.1))


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    work, cluster = replace(WORK, response_spread=1.0, max_lag=1), Cluster(3, slow_share=0.4, failure_seconds=200)
    first = simulate(work, TIMES, cluster, 3)
    assert first == simulate(work, TIMES, cluster, 3)
    assert first.ends != simulate(work, TIMES, cluster, 4).ends


def test_more_workers_are_never_slower_where_nothing_grows_with_them() -> None:
    work, previous = replace(WORK, prompts_per_step=64), float("inf")
    for workers in (1, 2, 4, 8, 16, 32, 64, 128):
        result = simulate(work, TIMES, Cluster(workers))
        assert result.tokens == 64 * 2 * 10 * 6
        assert result.seconds == pytest.approx(6 * (320 / min(workers, 64) + 15))
        assert result.seconds <= previous
        previous = result.seconds


def test_responses_have_the_mean_and_spread_that_are_asked_for_and_are_cut() -> None:
    work = Work(steps=4, prompts_per_step=5000, response_tokens=700, response_spread=0.8)
    result = simulate(work, Times(), Cluster())
    assert result.tokens / (4 * 40_000) == pytest.approx(700, rel=0.01)
    # A gamma distribution with a spread of 1 is the exponential one: E[min(X, c)] = m (1 - exp(-c / m)).
    cut = simulate(replace(work, response_spread=1.0, max_new_tokens=700), Times(), Cluster())
    assert cut.tokens / (4 * 40_000) == pytest.approx(700 * (1 - np.exp(-1)), rel=0.01)


def test_fifteen_thousand_workers() -> None:
    """60,000 chunks a step: each worker writes four, and the fetches of a step follow one another."""
    work = Work(steps=2, prompts_per_step=60_000, samples_per_prompt=1)
    times = Times(tokens_per_second=1, update_seconds=5, weight_bytes=1, bytes_per_second=1e6)
    result = simulate(work, times, Cluster(15_000))
    assert [len(step) for step in result.chunks] == [60_000] * 2
    assert all(count == 1 for step in result.chunks for count in step)
    assert result.fetches == 2 * 15_000
    assert result.seconds == pytest.approx(2 * (0.015 + 4 + 5), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--workers 0", "--workers is 0, but must be a number of at least 1."),
        ("--workers two", "argument --workers: invalid int value: 'two'."),
        ("--tokens-per-second 0", "--tokens-per-second is 0, but must be a number of more than 0."),
        ("--tokens-per-second nan", "--tokens-per-second is nan, but must be a number of more than 0."),
        ("--update-seconds inf", "--update-seconds is inf, but must be a number of at least 0."),
        ("--slow-share 1.5", "--slow-share is 1.5, but must be a number of at least 0 and at most 1."),
        ("--seed -1", "--seed is -1, but must not be negative."),
        ("--machines 3", "unrecognized arguments: --machines 3."),
    ],
)
def test_bad_numbers_are_one_sentence(arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"error: {sentence}\n"


def test_a_line_for_every_number_of_workers_and_lag(capsys: pytest.CaptureFixture[str]) -> None:
    steps = "--steps 6 --prompts-per-step 8 --samples-per-prompt 2 --response-tokens 10"
    times = "--tokens-per-second 4 --update-seconds 15 --workers 1 2 --max-lag 0 1"
    assert main(f"{steps} {times}".split()) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["workers", "lag", "s/step", "tokens/s", "waits", "writing", "age", "highest", "lost"]
    assert lines[1] == ["1", "0", "55.0", "3", "73%", "73%", "0.00", "0", "0"]
    assert [line[:3] for line in lines[2:]] == [["1", "1", "42.5"], ["2", "0", "35.0"], ["2", "1", "22.5"]]
    assert lines[2][6:8] == ["0.83", "1"]


def guide_commands() -> list[Any]:
    text = GUIDE.read_text(encoding="utf-8").replace("\\\n", " ")
    pattern = r"```\npython -m zerozoo\.distributed\.forecast ([^`]*?)```[^`]*?```text\n(.*?)```"
    return re.findall(pattern, text, re.DOTALL)


def test_the_guide_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    commands = guide_commands()
    assert len(commands) == 2
    for arguments, shown in commands:
        assert main(shlex.split(arguments)) == 0
        assert capsys.readouterr().out == shown


def test_a_forecast_needs_neither_torch_nor_ray() -> None:
    code = "import sys, zerozoo.distributed.forecast; print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
