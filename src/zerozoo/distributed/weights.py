"""Weights on their way from the learner to those who write with them, and the proof that they have arrived.

The first parcel is the model as it is when the sampler is made. Every later one holds the weights that have ever
changed since: with LoRA these are the adapters alone. A probe travels along, a few tokens and their log-probs under the
learner's weights; who has unpacked a parcel computes them, too, and refuses to write when they differ.
"""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zerozoo.distributed.chunks import Parcel
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.sharding import whole_copy
from zerozoo.runs.errors import UserError

PROBE_TOKENS = 16
# How far log-probs of the same weights may lie apart on two processors: sums in another order, and autocast's rounding.
TOLERANCE = {None: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_serials = itertools.count(1)


@dataclass(frozen=True)
class Blueprint:
    """A model that another process can write with.

    Attributes:
        policy: on the CPU.
        device: what to put it on, as `Machine.device` without a number.
        rows_at_once: responses that are written side by side.
        matmul: precision of float32 products, as `Machine.matmul`.
    """

    policy: LanguageModel
    device: str
    rows_at_once: int
    matmul: str = "highest"


@dataclass(frozen=True)
class Probe:
    """A text that makes no sense, and its log-probs under the learner's weights."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Update:
    """Weights by name, as the bytes of contiguous tensors, which the object store shares without a copy."""

    tensors: Mapping[str, np.ndarray]
    probe: Probe


class Publisher:
    """Puts the weights of a policy into the object store, once for each version of them.

    Args:
        policy: whose weights; now as the start, and at every `publish` as they are then.
        put: (object) -> reference.
        ranks: the learners; all of them publish, and the first alone puts something into the store.
    """

    def __init__(
        self,
        policy: LanguageModel,
        put: Callable[[Any], Any],
        device: str,
        rows_at_once: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.policy, self.put, self.ranks = policy, put, ranks
        self.start = fingerprints(policy.model)
        start = on_cpu(policy, ranks.rank == 0)
        matmul = torch.get_float32_matmul_precision()
        self.model = self._parcel(lambda: start and Blueprint(start, device.split(":")[0], rows_at_once, matmul))
        self.latest: dict[str, int] = {}
        self.moved: set[str] = set()  # weights that have ever been others than at the start
        self.weights = Parcel(0, [])
        self.published = 0  # parcels of weights so far

    def publish(self) -> Parcel:
        """The weights that the policy has now; nothing is sent when they are those of the last call."""
        now = fingerprints(self.policy.model)
        # With sharded weights the following is done by all learners together, so all have to agree.
        if self.ranks.highest(float(now != self.latest)):
            changed = sorted(name for name, value in now.items() if value != self.start.get(name))
            self.moved.update(name for part in self.ranks.gather([changed]) for name in part)
            parameters = self.policy.model.named_parameters()
            tensors = {name: whole_tensor(value) for name, value in parameters if name in self.moved}
            probe = make_probe(self.policy)
            self.weights = self._parcel(
                lambda: Update({name: to_bytes(tensor) for name, tensor in tensors.items()}, probe)
            )
            self.latest = now
            self.published += 1
        return self.weights

    def _parcel(self, make: Callable[[], Any]) -> Parcel:
        return Parcel(next(_serials), [self.put(make())] if self.ranks.rank == 0 else [])


def on_cpu(policy: LanguageModel, here: bool = True) -> LanguageModel | None:
    """The same model with whole weights on the CPU; itself when it is that.

    A sharded one is gathered by all processes together, for those that want it `here`; the others may get None.
    """
    if policy.outline is not None:
        return whole_copy(policy, here)
    if policy.model.device.type == "cpu":
        return policy
    model: Any = copy.deepcopy(policy.model)
    return replace(policy, model=model.to("cpu"))


def fingerprints(model: nn.Module) -> dict[str, int]:
    """A sum over the bits of this process's part of every weight.

    torch's counter of changes would be cheaper, but the fused optimisers do not count.
    """
    names, sums = [], []
    for name, parameter in model.named_parameters():
        local = getattr(parameter, "_local_tensor", parameter).detach().contiguous()
        names.append(name)
        sums.append(local.view(BITS[local.element_size()]).sum(dtype=torch.int64))
    return dict(zip(names, torch.stack(sums).tolist(), strict=True))


def whole_tensor(parameter: nn.Parameter) -> Tensor:
    """All of a weight that may be sharded; then all processes must ask for it at once."""
    gathered = getattr(parameter, "full_tensor", None)
    tensor: Tensor = parameter.detach() if gathered is None else gathered().detach()
    return tensor


def to_bytes(tensor: Tensor) -> np.ndarray:
    """(bytes,) uint8."""
    flat: np.ndarray = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


def load_bytes(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Put weights by name into a model, in place. Raises ValueError for a name or a size that it does not have."""
    parameters = dict(model.named_parameters())
    if not set(tensors) <= set(parameters):
        raise ValueError(f"the model has no weights {sorted(set(tensors) - set(parameters))[:3]}")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the store's memory may be read only, and it is only read
        for name, data in tensors.items():
            parameter = parameters[name]
            values = torch.from_numpy(data).view(parameter.dtype)
            if values.numel() != parameter.numel():
                raise ValueError(f"{name} has {parameter.numel()} weights, not {values.numel()}")
            parameter.copy_(values.view(parameter.shape))


def make_probe(policy: LanguageModel) -> Probe:
    """The probe of the weights as they are."""
    vocabulary = int(policy.model.config.get_text_config().vocab_size)
    tokens = tuple(index % vocabulary for index in range(1, PROBE_TOKENS + 2))
    return Probe(tokens, tuple(probe_logprobs(policy, tokens)))


@torch.no_grad()
def probe_logprobs(policy: LanguageModel, tokens: Sequence[int]) -> list[float]:
    """Log-probs of all tokens but the first, by the arithmetic of the update."""
    training = policy.model.training
    policy.model.eval()
    with policy.precision():
        scores = response_scores(policy.model, Sequences([list(tokens[:1])], [list(tokens[1:])]))
    policy.model.train(training)
    values: list[float] = scores.logprobs.float().tolist()
    return values


def check_probe(probe: Probe, logprobs: Sequence[float], autocast: torch.dtype | None) -> None:
    """Raises UserError when the log-probs of a probe are not those of the learner."""
    apart = max(abs(one - other) for one, other in zip(probe.logprobs, logprobs, strict=True))
    rounded = torch.bfloat16 if torch.get_float32_matmul_precision() == "medium" else autocast
    if not apart <= TOLERANCE[rounded]:  # NaN is not either
        raise UserError(
            f"The rollout worker on {os.uname().nodename} computes other log-probs than the learner with the same"
            f" weights (a probe lies {apart:.2g} apart): look for other versions or other hardware there."
        )
