from __future__ import annotations

import pytest

from zerozoo.rewards.terms import REWARDS, load_reward
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError


def verification(verdict, boxed):
    return Verification(verdict, "5", 0.1, boxed, float(verdict is Verdict.RIGHT))


@pytest.mark.parametrize(
    ("name", "values"),
    [  # card simplerl-zoo, M9: right + box, right without, wrong + box, wrong without
        ("correctness", (1, 1, 0, 0)),
        ("strict", (1, -1, 0, -1)),
        ("mix", (1, -1, -0.5, -1)),
        ("independent", (1, 0.5, -0.5, -1)),
    ],
)
def test_reward_table(name, values):
    reward = load_reward(name)
    cases = [(verdict, boxed) for verdict in (Verdict.RIGHT, Verdict.WRONG) for boxed in (True, False)]
    assert tuple(reward(verification(*case)) for case in cases) == values


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("boxed", [True, False])
def test_timeout_is_worth_as_much_as_wrong_and_unscorable_nothing(name, boxed):
    reward = load_reward(name)
    assert reward(verification(Verdict.TIMEOUT, boxed)) == reward(verification(Verdict.WRONG, boxed))
    assert reward(verification(Verdict.UNSCORABLE, boxed)) == 0.0


def test_a_function_of_the_user():
    assert load_reward("reward_checkers:half_for_anything")(verification(Verdict.WRONG, False)) == 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "correct",
            "choose from: correctness, plus-minus, strict, mix, independent, score, boxed, none, or write",
        ),
        ("no_such_module:reward", "cannot be imported: No module named 'no_such_module'"),
        ("reward_checkers:missing", "cannot be imported"),
        ("reward_checkers:NOT_A_FUNCTION", "is not a function"),
        ("reward_checkers:", "Unknown reward"),
    ],
)
def test_a_reward_that_does_not_exist_is_a_user_error(name, message):
    with pytest.raises(UserError, match=message):
        load_reward(name)
