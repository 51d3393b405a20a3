"""Standardised observations: one scale for all environment copies, part of the policy and frozen in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-6
CHUNK = 65_536  # rows that `fit` turns into float64 at a time


class Normaliser(nn.Module):
    """(x - mean) / std with std = standard deviation + 1e-6; changes nothing before it has seen data.

    mean and std are float32 buffers of `shape`; count () and moments (2, *shape), the mean and the sum of squared
    deviations, are float64. All are in the state_dict, so the scale is saved, resumed and exported with its policy.
    clip: largest magnitude of what comes out, or None.
    """

    mean: Tensor
    std: Tensor
    count: Tensor
    moments: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("moments", torch.zeros((2, *shape), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(..., *shape) -> the same shape, standardised."""
        scaled = (x - self.mean) / self.std
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)

    def inverse(self, x: Tensor) -> Tensor:
        """What `forward` made of an observation, back in its own units (apart from what was clipped)."""
        return x * self.std + self.mean

    def fit(self, data: Any) -> Normaliser:
        """Takes mean and std from data (..., *shape), an array or a tensor, and forgets what was seen before.

        Raises ValueError in evaluation mode, for other shapes and for no data.
        """
        if not self.training:
            raise ValueError("the normaliser is frozen in evaluation mode: call train() before fit")
        rows = self._rows(torch.as_tensor(data))
        self.count.zero_()
        self.moments.zero_()
        for chunk in rows.split(CHUNK):
            self.update(chunk)
        return self

    @torch.no_grad()
    def update(self, batch: Any) -> None:
        """Takes a batch (..., *shape), such as (copies, *shape), into mean and std; nothing happens in evaluation mode.

        Welford's running moments, a batch at a time (Chan, Golub and LeVeque 1979): exact up to float64 rounding,
        whatever the sizes of the batches.
        """
        if not self.training:
            return
        rows = self._rows(torch.as_tensor(batch)).double()  # (B, *shape)
        total = self.count + len(rows)
        mean, squares = self.moments
        batch_mean = rows.mean(0)
        shift = batch_mean - mean
        squares += (rows - batch_mean).square().sum(0) + shift.square() * (self.count * len(rows) / total)
        mean += shift * (len(rows) / total)
        self.count.copy_(total)
        self.mean.copy_(mean)
        self.std.copy_((squares / total).sqrt() + EPSILON)

    def _rows(self, data: Tensor) -> Tensor:
        shape = tuple(self.mean.shape)
        if tuple(data.shape[data.ndim - len(shape) :]) != shape or data.ndim <= len(shape) or data.numel() == 0:
            raise ValueError(f"the data has shape {tuple(data.shape)}, but rows of shape {shape} are wanted")
        return data.reshape(-1, *shape)
