"""The samplers of this room, under the names by which `--sampler` takes them; nothing is loaded before one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zerozoo.language.samplers.named import NAMED

if TYPE_CHECKING:
    from zerozoo.language.device import Machine
    from zerozoo.language.models import LanguageModel
    from zerozoo.language.samplers.interface import Sampler


def offer_samplers() -> None:
    """Make them known to `language.build.make_sampler`."""
    NAMED["vllm"] = _vllm


def _vllm(policy: LanguageModel, machine: Machine) -> Sampler:
    from zerozoo.distributed.vllm_sampler import make_vllm_sampler

    return make_vllm_sampler(policy, machine)
