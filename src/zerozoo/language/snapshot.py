"""Everything of policy and optimiser that an exact resume needs, as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zerozoo.language.parallel import Ranks
from zerozoo.language.sharding import as_part, first_row
from zerozoo.runs.parts import Rows, rows_of
from zerozoo.runs.run import Run

POLICY, OPTIMIZER = "policy/", "optimizer/"
STEP = "step/"  # the one number in the state of a parameter, for all its rows


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Trainable weights and the optimiser's state; tied weights appear once, frozen ones (LoRA) not at all.

    Of a sharded model they are DTensors; `save` knows what to do with them.
    """
    tensors = {POLICY + name: value.detach() for name, value in _trainable(model)}
    names = _names(model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{OPTIMIZER}{key}/{names[parameter]}"] = value.detach()
    return tensors


def save(run: Run, ranks: Ranks, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint of the run: by the process that writes it, or of sharded tensors each process its rows."""
    parts = {
        name: Rows(value.to_local(), first_row(value), tuple(value.shape))
        for name, value in tensors.items()
        if isinstance(value, DTensor)
    }
    if parts:
        whole = {name: value for name, value in tensors.items() if name not in parts}
        run.save_together(step, whole, parts, state, ranks)
    else:
        run.save(step, tensors, state)


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `snapshot` took, in place; a sharded model takes its rows, whoever has written them.

    Raises:
        ValueError: the tensors are of another model.
    """
    parameters = dict(_trainable(model))
    saved = {name.removeprefix(POLICY) for name in tensors if name.startswith(POLICY)}
    if saved != set(parameters):
        raise ValueError(f"the checkpoint has other weights than the model: {sorted(saved ^ set(parameters))[:3]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if isinstance(parameter, DTensor):
                parameter.to_local().copy_(_own_rows(tensors, POLICY + name, parameter))
            else:
                parameter.copy_(tensors[POLICY + name])
    for name in tensors:
        if name.startswith(OPTIMIZER):
            key, parameter_name = name.removeprefix(OPTIMIZER).split("/", 1)
            parameter = parameters[parameter_name]
            optimizer.state[parameter][key] = _state_for(parameter, tensors, name)


def _state_for(parameter: nn.Parameter, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of the optimiser's state, where its parameter is."""
    if isinstance(parameter, DTensor) and not name.startswith(OPTIMIZER + STEP):
        return as_part(_own_rows(tensors, name, parameter).to(parameter.device, copy=True), parameter)
    value = tensors[name]
    # Adam's step counter stays on the CPU unless the fused kernel wants it beside the weights.
    place = value.device if value.ndim == 0 and parameter.device.type == "cpu" else parameter.device
    return value.to(place, copy=True)


def _own_rows(tensors: Mapping[str, Tensor], name: str, parameter: DTensor) -> Tensor:
    """Those of a tensor of the parameter's shape that belong to this process."""
    start = first_row(parameter)
    return rows_of(tensors, name, start, start + len(parameter.to_local()))


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in _trainable(model)}
