from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from zerozoo.control import export
from zerozoo.control.export import export_onnx
from zerozoo.control.policies import Categorical, Deterministic, Gaussian
from zerozoo.control.spec import Spec
from zerozoo.runs.errors import UserError

BOX, CHOICE, IMAGES = Spec((5,), 3, False), Spec((5,), 4, True), Spec((7, 7, 3), 4, True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scale(nn.Module):
    """A stand-in for the normaliser."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.arange(5.0))
        self.register_buffer("std", torch.arange(5.0) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def run(path, obs: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["obs"]
    assert [item.name for item in session.get_outputs()] == ["action"]
    return session.run(["action"], {"obs": obs.numpy()})[0]


@pytest.mark.parametrize("batch", [1, 33])
def test_the_file_answers_as_the_policy_with_its_normaliser(tmp_path, batch):
    policy = Gaussian(BOX, True, (16,), layer_norm=True, dropout=0.5, generator=generator())
    normaliser = Scale()
    difference = export_onnx(tmp_path / "policy.onnx", BOX, policy, normaliser)
    assert 0 <= difference <= 1e-5
    assert policy.training
    assert policy.network.training
    obs = 3 * torch.randn(batch, 5, generator=generator(9))
    policy.eval()
    expected = policy.act(normaliser(obs)).numpy()
    np.testing.assert_allclose(run(tmp_path / "policy.onnx", obs), expected, atol=1e-5)
    assert np.abs(policy.act(obs).numpy() - expected).max() > 1e-2  # the normaliser matters
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]  # no weights beside the file


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        (BOX, lambda: Gaussian(BOX, False, (16,), tanh_mean=False, orthogonal=20.0, generator=generator())),
        (BOX, lambda: Deterministic(BOX, (16,), generator=generator())),
        (CHOICE, lambda: Categorical(CHOICE, (16,), generator=generator())),
        (IMAGES, lambda: Categorical(IMAGES, (16,), generator=generator())),
    ],
)
def test_every_kind_of_policy(tmp_path, spec, make):
    policy = make()
    export_onnx(tmp_path / "policy.onnx", spec, policy)
    if spec is IMAGES:
        obs = torch.randint(256, (9, 7, 7, 3), generator=generator(9), dtype=torch.uint8)
    else:
        obs = torch.randn(9, 5, generator=generator(9))
    answer, expected = run(tmp_path / "policy.onnx", obs), policy.act(obs).numpy()
    assert answer.dtype == expected.dtype
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    if not spec.discrete:
        assert np.abs(answer).max() <= 1


def test_a_wrong_file_is_found_and_removed(tmp_path, monkeypatch):
    policy = Deterministic(BOX, (16,), generator=generator())
    true = export._run
    monkeypatch.setattr(export, "_run", lambda path, obs: true(path, obs) + 2e-5)
    with pytest.raises(UserError, match="differs from the trained one"):
        export_onnx(tmp_path / "policy.onnx", BOX, policy)
    assert not (tmp_path / "policy.onnx").exists()


def test_nan_in_the_policy_is_found(tmp_path):
    policy = Deterministic(BOX, (16,), generator=generator())
    with torch.no_grad():
        policy.network[-1].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="differs"):
        export_onnx(tmp_path / "policy.onnx", BOX, policy)


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError, match=r"needs onnxscript; run: pip install 'zerozoo\[export\]'"):
        export_onnx(tmp_path / "policy.onnx", BOX, Deterministic(BOX, (16,), generator=generator()))
    assert list(tmp_path.iterdir()) == []
