"""Samplers that another room offers under a name: `cli` fills the table, because `language` may not import them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table is filled before anything heavy is loaded
    from zerozoo.language.device import Machine
    from zerozoo.language.models import LanguageModel
    from zerozoo.language.samplers.interface import Sampler

MakeSampler = Callable[["LanguageModel", "Machine"], "Sampler"]
NAMED: dict[str, MakeSampler] = {}
