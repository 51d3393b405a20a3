"""k-means, with every random number from a stream of the caller."""

from __future__ import annotations

import numpy as np

from zerozoo.runs.errors import UserError

FITTED = 20_000  # points that the centres are fitted on, at most


def k_means(points: np.ndarray, number: int, rng: np.random.Generator, rounds: int = 50) -> np.ndarray:
    """Clusters (N,) of points (N, d): Lloyd's rounds from a k-means++ start, fitted on at most `FITTED` points.

    Numbered from 0 without gaps: what becomes empty is dropped. UserError for more clusters than points.
    Source: Arthur and Vassilvitskii 2007 (k-means++); Lloyd 1982.
    """
    if not 1 <= number <= len(points):
        raise UserError(f"clusters must lie between 1 and the number of observations, {len(points)}, not {number}.")
    points = points.astype(np.float64)
    some = points[rng.permutation(len(points))[:FITTED]]
    centres = some[:1]
    while len(centres) < number:
        away = np.maximum(_squared_distances(some, centres).min(axis=1), 1e-12)  # equal points: any will do
        centres = np.append(centres, some[rng.choice(len(some), 1, p=away / away.sum())], axis=0)
    for _ in range(rounds):
        nearest = _squared_distances(some, centres).argmin(axis=1)
        centres = np.stack([some[nearest == cluster].mean(axis=0) for cluster in np.unique(nearest)])
    parts = np.array_split(points, -(-len(points) // FITTED))
    nearest = np.concatenate([_squared_distances(part, centres).argmin(axis=1) for part in parts])
    return np.unique(nearest, return_inverse=True)[1]


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, d), (K, d) -> (N, K)."""
    return (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
