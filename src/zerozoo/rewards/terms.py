"""What a verification is worth: the reward of SimpleRL-Zoo and the format-penalising variants it was compared with.

Sources: arXiv 2503.18892, section 3.1 (`correctness`, `strict`; it states only the -1, the 0 for wrong-but-boxed is our
reading) and the project's first version (`mix`; `independent` is an option of its released reward file). A response
whose gold is unscorable earns 0 under each of them: nothing is known about it, and a penalty for its form alone
would be all that its group learns from. `plus-minus` is the reward of OREAL's released code (arXiv 2502.06781),
`boxed` that of RLSP's (arXiv 2502.06773); `none` leaves everything to a learned reward.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError

Reward = Callable[[Verification], float]


def _term(right_boxed: float, right: float, wrong_boxed: float, wrong: float, name: str) -> Reward:
    def reward(verification: Verification) -> float:
        if verification.verdict is Verdict.UNSCORABLE:
            return 0.0
        if verification.verdict is Verdict.RIGHT:
            return right_boxed if verification.boxed else right
        return wrong_boxed if verification.boxed else wrong

    reward.__name__ = name
    reward.__doc__ = (
        f"Right and boxed {right_boxed:g}, right without box {right:g}, "
        f"wrong but boxed {wrong_boxed:g}, wrong without box {wrong:g}."
    )
    return reward


def score(verification: Verification) -> float:
    """The verifier's own score, for verifiers that grade."""
    return 0.0 if verification.verdict is Verdict.UNSCORABLE else verification.score


REWARDS: dict[str, Reward] = {
    "correctness": _term(1.0, 1.0, 0.0, 0.0, "correctness"),
    "plus-minus": _term(1.0, 1.0, -1.0, -1.0, "plus-minus"),
    "strict": _term(1.0, -1.0, 0.0, -1.0, "strict"),
    "mix": _term(1.0, -1.0, -0.5, -1.0, "mix"),
    "independent": _term(1.0, 0.5, -0.5, -1.0, "independent"),
    "score": score,
    "boxed": _term(1.0, -0.5, 0.0, -0.5, "boxed"),
    "none": _term(0.0, 0.0, 0.0, 0.0, "none"),
}


def load_reward(name: str) -> Reward:
    """The reward of this name, or the Python function of a dotted name `module:function` of Verification -> float.

    Raises `UserError` when there is no such reward, or the function cannot be imported.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f"Unknown reward '{name}'; choose from: {', '.join(REWARDS)}, or write module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look for modules where it is called
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The reward '{name}' cannot be imported: {error}.") from None
    if not callable(function):
        raise UserError(f"The reward '{name}' is not a function.")
    return function
