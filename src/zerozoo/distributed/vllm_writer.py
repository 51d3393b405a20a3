"""A rollout worker that writes with vLLM; see `rollout_worker.Writer`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from zerozoo.distributed import vllm_engine
from zerozoo.distributed.rollout_worker import PolicyWriter
from zerozoo.distributed.vllm_sampler import VllmSampler
from zerozoo.distributed.weights import Blueprint


class VllmWriter(PolicyWriter):
    """Keeps the policy on the CPU, where weights arrive, beside an engine on the worker's device.

    So two probes are checked: the learner's on the policy here, and the policy's on the engine.
    """

    def __init__(self, blueprint: Blueprint, worker: int) -> None:
        vllm_engine.check_installed()
        policy, rows, device = blueprint.policy, blueprint.rows_at_once, blueprint.device
        policy.model.eval()
        dtype = "bfloat16" if policy.autocast is torch.bfloat16 else "float32"
        super().__init__(
            policy,
            VllmSampler(policy, lambda: vllm_engine.VllmEngine(policy, dtype, rows, device, vllm_engine.SHARE_ALONE)),
        )

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """See `Writer`."""
        super().load(tensors)
        self.sampler.publish(self.sampler.version + 1)
