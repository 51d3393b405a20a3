"""Weights, gradients and optimiser state in parts, one for each process: FSDP2, `fully_shard` of torch.

Every layer is gathered when it computes, forward and backward, and given back; its gradient is added up over the
processes and each keeps its part. What lies around the layers (embedding, last norm, head) is whole during a pass.
Zhao et al. 2023, arXiv 2304.11277; torch.distributed.fsdp.

Our own forward passes do not call the layers but compute with their weights (`packing`), so each sharded module gets a
door (`heads.enter`) that gathers and gives back as its `forward` would. Passes are collective: all processes must make
equally many (`batches.evened`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from zerozoo.language.heads import DOOR, causal_model, enter
from zerozoo.language.models import LanguageModel


def shard_modules(root: nn.Module, layers: Sequence[nn.Module], device: str, products: torch.dtype | None) -> None:
    """Keep this process's rows of every weight of `root`, all processes those of the same order of ranks; in place.

    Gradients are added up over the processes, not averaged: losses are divided by the tokens of all of them.

    Args:
        layers: parts of `root` that are gathered one at a time.
        device: of the weights from now on.
        products: None, or the dtype to which autocast rounds. Layers are gathered in it, which halves what travels;
            gradients are added up, and weights kept, in their own precision.
    """
    mesh = init_device_mesh(device.split(":")[0], (dist.get_world_size(),))
    # Autocast rounds the inputs of products; what stands between them keeps its precision.
    rounded = MixedPrecisionPolicy(products, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=rounded if products else MixedPrecisionPolicy())
    fully_shard(root, mesh=mesh)
    for module in (*layers, root):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it adds up
        setattr(module, DOOR, MethodType(_compute, module))
        register_fsdp_forward_method(module, DOOR)
    with torch.no_grad():
        enter(root, tuple)  # torch takes the first module that runs for the outermost


def _compute(module: nn.Module, compute: Callable[..., Any], *arguments: Any) -> Any:
    return compute(*arguments)


def shard_policy(policy: LanguageModel, device: str) -> None:
    """Shard a language model, adapters included, which may lie on the host until now; `policy.outline` remembers it."""
    empty = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=value.requires_grad)
        for value in policy.model.parameters()
    }
    policy.outline = copy.deepcopy(policy.model, empty)
    causal = causal_model(policy.model)
    shard_modules(causal, list(causal.model.layers), device, policy.autocast)


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are kept in parts."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """All weights of a sharded model in every process meanwhile, as plain tensors; forward passes are not collective.

    Entering is. Nothing happens to a model that is not sharded.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            # The outermost module stays whole between forward and backward pass, as FSDP does by itself.
            module.set_reshard_after_forward(module is not modules[0], recurse=False)


def whole_copy(policy: LanguageModel, here: bool = True) -> LanguageModel | None:
    """A sharded model as it is now, as an ordinary one on the host; collective, one weight at a time.

    Args:
        here: whether this process wants it; the others get None.
    """
    assert policy.outline is not None
    full: dict[str, nn.Parameter] = {}
    for name, value in policy.model.named_parameters():
        gathered = value.full_tensor() if isinstance(value, DTensor) else value
        if here:
            full[name] = nn.Parameter(gathered.detach().to("cpu", copy=True), requires_grad=value.requires_grad)
    if not here:
        return None
    weights = {id(value): full[name] for name, value in policy.outline.named_parameters()}
    return replace(policy, model=copy.deepcopy(policy.outline, weights), outline=None)


def limit_gradients(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients down to a norm; what it was, of the whole gradient, whether or not it is sharded."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def first_row(tensor: DTensor) -> int:
    """Which row of the whole tensor is the first of this process. Processes without rows stand behind the last."""
    rows, mesh = tensor.shape[0], tensor.device_mesh
    return min(rows, mesh.get_local_rank() * -(-rows // mesh.size()))


def as_part(local: Tensor, like: DTensor) -> DTensor:
    """This process's rows of a tensor of the shape of another one, divided as that is."""
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
