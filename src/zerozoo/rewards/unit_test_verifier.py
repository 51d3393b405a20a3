"""A verifier that reads generated unit tests: their qualities as verdict and score. Nothing is executed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from zerozoo.rewards.extract import END_TOKENS, cut_at_stop
from zerozoo.rewards.unit_tests import WEIGHTS, analyse, combined_reward, first_unit_test, is_sound
from zerozoo.rewards.verifier import ClosingVerifier, Problem, Verdict, Verification, check_lengths


class UnitTestVerifier(ClosingVerifier):
    """RIGHT is a test with all qualities of `unit_tests.NEEDED`; `score` is `unit_tests.combined_reward`, -1 to 1.

    A problem's metadata hold `focal`, the name of the function under test; `start`, the text of the prompt that
    belongs to the test ("" if absent); and `weights`, weights of the qualities by name in the score (`WEIGHTS` if
    absent; none at all make every score 0). A problem without `focal` is UNSCORABLE. `extracted` is the test that was
    judged: the first one of the response, up to the first of the `stop` strings.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stops = (*END_TOKENS, *stop)

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """One verification for every (problem, response) pair, in order."""
        check_lengths(problems, responses)
        return [self._verify(problem.metadata, response) for problem, response in zip(problems, responses, strict=True)]

    def _verify(self, metadata: Mapping[str, object], response: str) -> Verification:
        began = time.perf_counter()
        source = read_unit_test(metadata, response, self._stops)
        focal, weights = metadata.get("focal"), metadata.get("weights", WEIGHTS)
        if not isinstance(focal, str) or not isinstance(weights, Mapping):
            return Verification(Verdict.UNSCORABLE, source, 0.0, False, 0.0)
        verdict = Verdict.RIGHT if is_sound(analyse(source, focal)) else Verdict.WRONG
        score = combined_reward(source, focal, weights) if weights else 0.0
        return Verification(verdict, source, 1000 * (time.perf_counter() - began), False, score)


def read_unit_test(metadata: Mapping[str, object], response: str, stop: Sequence[str] = ()) -> str:
    """The text of the test: the end of the prompt and the response, without what follows a stop string or the test."""
    return first_unit_test(f"{metadata.get('start', '')}{cut_at_stop(response, stop)}")
