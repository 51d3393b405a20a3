"""A rollout worker that writes with vLLM; see `rollout_worker.Writer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from zerozoo.distributed import vllm_engine
from zerozoo.distributed.vllm_sampler import VllmSampler
from zerozoo.distributed.weights import Blueprint, Probe, check_probe, load_bytes, probe_logprobs
from zerozoo.language.samplers.interface import Decoding, Samples


class VllmWriter:
    """Keeps the policy on the CPU, where weights arrive, beside an engine on the worker's device.

    So two probes are checked: the learner's on the policy here, and the policy's on the engine.
    """

    def __init__(self, blueprint: Blueprint, worker: int) -> None:
        vllm_engine.check_installed()
        self.policy = blueprint.policy
        self.policy.model.eval()
        dtype = "bfloat16" if self.policy.autocast is torch.bfloat16 else "float32"
        self.sampler = VllmSampler(
            self.policy,
            lambda: vllm_engine.VllmEngine(
                self.policy, dtype, blueprint.rows_at_once, blueprint.device, vllm_engine.SHARE_ALONE
            ),
        )

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """See `Writer`."""
        load_bytes(self.policy.model, tensors)
        self.sampler.publish(self.sampler.version + 1)

    def check(self, probe: Probe) -> None:
        """See `Writer`."""
        check_probe(probe, probe_logprobs(self.policy, probe.tokens), self.policy.autocast)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
    ) -> Samples:
        """See `Writer`."""
        return self.sampler.write(prompts, samples, decoding, uniforms, begun)
