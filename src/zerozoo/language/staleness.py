"""How old responses are: the version of the weights that trains less the versions that wrote their tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zerozoo.language.samplers.interface import Samples


def written_by(samples: Samples, version: int) -> Samples:
    """The same responses, all of them written by weights of `version`."""
    return replace(samples, versions=torch.where(_written(samples), version, 0).int())


def token_ages(samples: Samples, version: int) -> Tensor:
    """(N, T) int64 updates between the weights that wrote each token and those of `version`, zero where padded."""
    return (version - samples.versions.long()) * _written(samples)


def row_ages(samples: Samples, version: int) -> Tensor:
    """(N,) int64 age of the oldest token of each response: a mean would hide that a response mixes versions."""
    return token_ages(samples, version).amax(1)


def staleness_metrics(samples: Samples, version: int, max_lag: int) -> dict[str, float]:
    """Metrics `staleness/...` of responses that are trained on by weights of `version`."""
    ages, rows = token_ages(samples, version), row_ages(samples, version)
    written = _written(samples)
    youngest = ages.masked_fill(~written, version + 1).amin(1)
    return {
        "staleness/mean": float(rows.float().mean()),
        "staleness/highest": float(rows.max()),
        "staleness/older_tokens": float((ages > 0).sum() / written.sum()),
        "staleness/mixed_rows": float((youngest < rows).float().mean()),
        "staleness/dropped": float((rows > max_lag).float().mean()),
    }


def _written(samples: Samples) -> Tensor:
    """(N, T) bool, False where padded."""
    return torch.arange(samples.tokens.shape[1]) < samples.lengths[:, None]
