"""PointRobot: which violations can be avoided, and starts from which they can."""

from __future__ import annotations

import math

import numpy as np

from zerozoo.environments.batched.hazards import HAZARDS, Hazards, SafeStarts, avoidable


def state(*rows: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    return dict(zip(("x", "y", "speed", "heading"), np.array(rows).T.copy(), strict=True))


def test_what_can_be_avoided() -> None:
    x, y = HAZARDS[0]
    up = math.pi / 2
    answers = avoidable(
        state(
            (x, y, 0.0, 0.0),  # inside
            (-2.5, -2.5, 0.0, up),  # standing far away
            (x, y - 0.8 - 0.1, 2.0, up),  # 0.1 before the edge, at 2 m/s
            (x, y - 0.8 - 1.0, 1.0, up),  # 1 before it, at 1 m/s: braking takes half of that
            (x, y - 0.8 - 0.4, 1.0, up),  # braking takes 0.5 and the hazard is too wide to turn away from
            (x + 0.8, y - 0.3, 1.0, up),  # along its right side: only turning away helps
            (x, y - 0.8 - 0.1, 2.0, -up),  # driving away
            (2.9, 0.0, 2.0, 0.0),  # out of the arena, where nothing counts
        )
    )
    assert answers.tolist() == [False, True, False, True, False, True, True, True]


def test_safe_starts_are_safe_and_depend_on_their_seed_alone() -> None:
    world = SafeStarts(64)
    obs = world.reset_seeded(range(64))
    assert avoidable(world.arrays).all()
    assert not avoidable(_plain_starts()).all()
    again = SafeStarts(2).reset_seeded([63, 0])
    np.testing.assert_array_equal(again, obs[[63, 0]])


def _plain_starts() -> dict[str, np.ndarray]:
    world = Hazards(64)
    world.reset_seeded(range(64))
    return world.arrays
