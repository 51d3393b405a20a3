"""A policy with its normaliser as one ONNX file, checked through ONNX Runtime before it is handed over."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from zerozoo.control.spec import Spec
from zerozoo.runs.errors import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-5  # largest difference of an action between PyTorch and ONNX Runtime
CHECKED = 7  # observations in the check; another number than in the export, so that a fixed batch size would show
INPUT, OUTPUT = "obs", "action"


class _Answer(nn.Module):
    """Observation -> normaliser -> the policy's mode, clipped to [-1, 1] if it is continuous."""

    def __init__(self, policy: nn.Module, normaliser: nn.Module | None, discrete: bool) -> None:
        super().__init__()
        self.policy, self.normaliser, self.discrete = policy, normaliser, discrete

    def forward(self, obs: Tensor) -> Tensor:
        obs = obs if self.normaliser is None else self.normaliser(obs)
        action = self.policy.mode(obs)  # type: ignore[operator]
        return action if self.discrete else action.clamp(-1, 1)


def export_onnx(path: Path | str, spec: Spec, policy: nn.Module, normaliser: nn.Module | None = None) -> float:
    """Writes the deterministic answer of `policy` to `path`; returns the largest difference found in the check.

    policy: has `mode(obs (B, *obs_shape)) -> action`. The file has the input "obs" (batch, *obs_shape) of float32, or
    uint8 for images, raw as the environment gives it, and the output "action" (batch, m) float32 or (batch,) int64; the
    batch is free. Both modules are in evaluation mode during the export and are left as they were.

    Raises UserError when the packages of the extra `export` are missing, and when ONNX Runtime's actions differ from
    PyTorch's by more than 1e-5 (the file is then removed).
    """
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"the export to ONNX needs {', '.join(missing)}; run: pip install 'zerozoo[export]'")
    path = Path(path)
    answer = _Answer(policy, normaliser, spec.discrete)
    modes = [(module, module.training) for module in answer.modules()]
    answer.eval()
    try:
        _write(path, answer, _observations(spec, 2, 0))
        obs = _observations(spec, CHECKED, 1)
        with torch.no_grad():
            expected = answer(obs)
    finally:
        for module, training in modes:
            module.training = training
    difference = float((_run(path, obs) - expected).abs().max())
    if not difference <= TOLERANCE:
        path.unlink()
        raise UserError(f"the exported policy differs from the trained one by {difference:.2g}, so it was not kept")
    return difference


def _observations(spec: Spec, number: int, seed: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    if len(spec.obs_shape) == 3:
        return torch.randint(256, (number, *spec.obs_shape), generator=generator, dtype=torch.uint8)
    return torch.randn((number, *spec.obs_shape), generator=generator)


def _write(path: Path, answer: nn.Module, example: Tensor) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            answer,
            (example,),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        logger.setLevel(level)


def _run(path: Path, obs: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: obs.numpy()})[0])
