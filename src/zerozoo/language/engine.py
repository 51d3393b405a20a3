"""Who writes the responses of a run: the learner itself, or an engine that has workers on other machines.

A recipe does not know. Whoever starts it says so around the call, and `build.make_sampler` asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from zerozoo.language.device import Machine
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import Ranks
from zerozoo.language.samplers.interface import Sampler


class Engine(Protocol):
    """Gives samplers that write with the weights of a policy somewhere else."""

    def sampler(self, name: str, policy: LanguageModel, machine: Machine, ranks: Ranks) -> Sampler:
        """A sampler of the kind `name` for the policy as it is now; every process of `ranks` asks for one.

        Raises UserError for a kind that the engine does not have.
        """


_engine: ContextVar[Engine | None] = ContextVar("engine", default=None)


def current_engine() -> Engine | None:
    """The engine that writes the responses of this run; None: the learner does."""
    return _engine.get()


@contextmanager
def use_engine(engine: Engine | None) -> Iterator[None]:
    """Context in which `engine` writes the responses."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)
