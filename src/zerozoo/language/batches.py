"""How the rows of a step are cut: into mini-batches of gradient steps, shares of processes, and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from zerozoo.language.decoder import can_pack
from zerozoo.language.logprobs import Sequences, split_by_tokens
from zerozoo.language.packing import fill_by_tokens
from zerozoo.language.parallel import Ranks
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.sharding import is_sharded, limit_gradients
from zerozoo.language.shared_prompts import can_share
from zerozoo.runs.errors import DivergedError


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass.

    Attributes:
        rows: of the rollouts; none in a pass that is only made because other processes make one (`evened`).
        shared: whether rows of a group share their prompt.
        tokens, padded: positions that are computed, without and with padding.
    """

    rows: list[int]
    shared: bool
    tokens: int
    padded: int


IDLE = MicroBatch([], shared=False, tokens=0, padded=0)


def sequences_of(rollouts: Rollouts, batch: MicroBatch) -> Sequences:
    """The rows of a micro-batch; for an idle one a single token, which nobody looks at."""
    return rollouts.sequences(batch.rows) if batch.rows else Sequences([[0]], [[0]])


def evened(model: torch.nn.Module, batches: list[MicroBatch], ranks: Ranks) -> list[MicroBatch]:
    """The micro-batches of this process, with idle ones behind them where the weights are sharded.

    Every pass then gathers weights from all processes, so all have to make equally many.
    """
    if ranks.size == 1 or not is_sharded(model):
        return batches
    return batches + [IDLE] * (int(ranks.highest(len(batches))) - len(batches))


def minibatches(rollouts: Rollouts, number: int) -> list[list[int]]:
    """Rows of each mini-batch: consecutive groups, in the order in which they were drawn.

    There are at most as many as groups: more would be empty.
    """
    groups = rollouts.groups.unique(sorted=True)
    parts = torch.tensor_split(groups, min(number, len(groups)))
    return [torch.isin(rollouts.groups, part).nonzero()[:, 0].tolist() for part in parts]


def share_of_rank(rollouts: Rollouts, rows: Sequence[int], ranks: Ranks) -> list[int]:
    """Those of the given rows that this process works on: whole groups, dealt in turn."""
    group_of = rollouts.groups.tolist()
    groups = list(dict.fromkeys(group_of[row] for row in rows))
    mine = set(groups[ranks.rank :: ranks.size])
    return [row for row in rows if group_of[row] in mine]


def microbatches(
    model: torch.nn.Module,
    rollouts: Rollouts,
    rows: Sequence[int],
    budget: int,
    share_prompts: bool,
    packed: bool = False,
    states: int = 0,
) -> list[MicroBatch]:
    """Rows in micro-batches of at most `budget` computed tokens; rows that share a prompt stand together.

    Args:
        model: the model that will run them, which decides what can be shared and packed.
        states: positions a row has beyond those that predict its tokens.
    """
    if can_pack(model):
        sequences = rollouts.sequences(rows)
        longer = [[*response, *[0] * states] for response in sequences.responses]
        filled = fill_by_tokens(sequences.prompts, longer, budget, share_prompts)
        return [MicroBatch([rows[i] for i in part], share_prompts, tokens, tokens) for part, tokens in filled]
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(int(rollouts.groups[row]), []).append(row)
    together, alone = [], []
    for members in groups.values():
        sequences = rollouts.sequences(members)
        prompt, responses = len(sequences.prompts[0]), [len(response) + states for response in sequences.responses]
        if share_prompts and can_share(model, prompt, responses):
            together.append((members, prompt + sum(responses) - len(responses)))
        else:
            alone += [([row], length + states) for row, length in zip(members, sequences.lengths, strict=True)]
    batches = []
    for units, shared in ((together, True), (alone, False)):
        for batch in split_by_tokens([length for _, length in units], budget):
            lengths = [units[index][1] for index in batch]
            padded = sum(lengths) if packed and not shared else len(batch) * max(lengths)
            members = [row for index in batch for row in units[index][0]]
            batches.append(MicroBatch(members, shared, sum(lengths), padded))
    return batches


def prepare(model: torch.nn.Module) -> None:
    """No dropout between sampler and learner (trap 16), but gradient checkpointing where it was asked for."""
    model.eval()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # transformers checkpoints a layer only in training mode; the dropouts are in its parts, which stay as
            # they are.
            layer.training = layer.gradient_checkpointing


def take_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], largest: float, ranks: Ranks
) -> Tensor:
    """One step with the gradients that have been added up, of all processes; their norm before it is limited.

    Raises:
        DivergedError: when that is not finite; the weights are as before and the gradients gone.
    """
    if ranks.size > 1 and not any(isinstance(parameter, DTensor) for parameter in parameters):  # else they are sums
        for parameter in parameters:
            if parameter.grad is None:  # no row of this process had one
                parameter.grad = torch.zeros_like(parameter)
        ranks.add(parameter.grad for parameter in parameters if parameter.grad is not None)
    norm = limit_gradients(parameters, largest)
    if not torch.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        raise DivergedError(f"The gradient norm became {float(norm)}; the step was not taken.")
    optimizer.step()
    return norm.detach()
