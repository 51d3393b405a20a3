"""One verifier for problems of several kinds: each problem says which one judges it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zerozoo.rewards.verifier import ClosingVerifier, Problem, Verification, Verifier, check_lengths
from zerozoo.runs.errors import UserError

Make = Callable[[str, str], Verifier]


class ByProblemVerifier(ClosingVerifier):
    """Hands every response to the verifier that its problem names in `metadata["verifier"]`.

    A problem that names none is an error and no silent zero: otherwise a part of the data would teach nothing, and only
    a warning would tell (as in Tulu 3's code).

    Args:
        make: (name, extractor) -> a verifier; called once for each kind, when the first problem of it comes.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._known: dict[tuple[str, str], Verifier] = {}

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """One verification for every (problem, response) pair, in order.

        Raises `UserError` for a problem that names no verifier.
        """
        check_lengths(problems, responses)
        places: dict[tuple[str, str], list[int]] = {}
        for place, problem in enumerate(problems):
            name = problem.metadata.get("verifier")
            if not isinstance(name, str):
                raise UserError("A problem of this mixture does not say which verifier judges it.")
            places.setdefault((name, str(problem.metadata.get("extractor", "lenient"))), []).append(place)
        judged: dict[int, Verification] = {}
        for kind, chosen in places.items():
            if kind not in self._known:
                self._known[kind] = self._make(*kind)
            part = self._known[kind].verify([problems[at] for at in chosen], [responses[at] for at in chosen])
            judged.update(zip(chosen, part, strict=True))
        return [judged[place] for place in range(len(responses))]

    def close(self) -> None:
        for verifier in self._known.values():
            verifier.close()
