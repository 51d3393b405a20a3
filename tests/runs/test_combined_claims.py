"""Conditions on what is computed from arms, seed by seed: multiples, sums and plain numbers as limits."""

from __future__ import annotations

from typing import Any

import pytest

from zerozoo.runs.claims import ArmResults, at_least, at_most, difference_claim, on_combined, require_mean

VALUES = {"a": {3: 1.0, 5: 2.0}, "b": {3: 0.5, 5: 0.5}, "c": {3: 0.4, 5: 0.9}}
RESULTS = ArmResults("m", VALUES, {"a": {3: {"n": 10.0}, 5: {"n": 12.0}}, "b": {3: {"n": 4.0}, 5: {"n": 6.0}}})


def test_arms_can_be_combined_seed_by_seed() -> None:
    """a + b - a is 0.5 under both seeds; the claim's own arms can be named beside the new ones."""
    judged = on_combined(difference_claim("sum", "a"), sum=lambda r: r.array("a") + r.array("b"))(RESULTS)
    assert (judged.verdict, judged.effect.value) == ("HOLDS", 0.5)
    assert (judged.effect.low, judged.effect.high) == (0.5, 0.5)


def test_combinations_of_another_metric() -> None:
    condition = on_combined(
        difference_claim("half", "b", metric="n"), metric="n", half=lambda r: 0.5 * r.array("a", "n")
    )
    judged = condition(RESULTS)  # (5, 6) - (4, 6)
    assert judged.effect.value == pytest.approx(0.5)
    assert judged.reason.startswith("n: half - b")


@pytest.mark.parametrize(("limit", "verdict"), [(0.6, "HOLDS"), (0.5, "INCONCLUSIVE"), (0.4, "FAILS")])
def test_at_most_a_number(limit: float, verdict: str) -> None:
    assert at_most("b", limit)(RESULTS).verdict == verdict


@pytest.mark.parametrize(("limit", "verdict"), [(0.4, "HOLDS"), (0.5, "INCONCLUSIVE"), (0.6, "FAILS")])
def test_at_least_a_number(limit: float, verdict: str) -> None:
    assert at_least("b", limit)(RESULTS).verdict == verdict


def test_limits_that_are_multiples_of_an_arm() -> None:
    """0.6 a is 0.6 and 1.2, above c by 0.2 and 0.3: the mean of the paired difference is 0.25."""
    judged = at_most("c", 0.6, of="a")(RESULTS)
    assert judged.effect.value == pytest.approx(0.25)
    assert "0.6 x a - c" in judged.reason
    assert at_most("c", 10.0, of="a")(RESULTS).effect.value == pytest.approx(15 - 0.65)
    other = at_least("a", 2.5, of="b", metric="n")(RESULTS)  # (10, 12) - (10, 15)
    assert other.effect.value == pytest.approx(-1.5)
    assert other.reason.startswith("n: a - 2.5 x b")


@pytest.mark.parametrize("condition", [at_most, at_least])
def test_a_precondition_sees_the_claims_own_arms(condition: Any) -> None:
    judged = condition("c", 0.6, of="a", precondition=require_mean("b", low=1.0))(RESULTS)
    assert (judged.verdict, judged.valid) == ("INCONCLUSIVE", False)
    assert condition("c", 0.6, of="a", precondition=require_mean("b", high=1.0))(RESULTS).valid
