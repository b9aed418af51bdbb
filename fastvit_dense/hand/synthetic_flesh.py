"""The flesh of the synthetic hand: a smooth union of cones around its bones, pads and webs.

Legend for shapes: V vertices, N points, C cones.
"""

from __future__ import annotations

import numpy as np

from .synthetic_anatomy import Chain, to_metres

# Cones from a point with a radius to another; mm, see synthetic_anatomy.
_PALM = (
    ((-45, 0, 12), 17.0, (6, 0, 11), 16.0),  # wrist
    ((-45, 0, -12), 17.0, (6, 0, -11), 16.0),
    ((15, 0, 12), 13.5, (86, 1, 26.5), 12.0),  # metacarpals
    ((15, 1, 4), 13.5, (89, 2.5, 7), 11.2),
    ((14, 0, -6), 13.5, (82.5, 1.5, -12.5), 10.8),
    ((13, -1, -14), 12.5, (73, -1.5, -30), 11.4),
    ((83, 6, 26), 7.5, (88, 5, 26.5), 7.0),  # knuckles
    ((86, 8, 7), 7.5, (91, 7, 7), 7.0),
    ((80, 6.5, -12), 7.0, (85, 5.5, -12.5), 6.5),
    ((70.5, 3, -29.5), 6.5, (75, 2.5, -30.5), 6.0),
    ((24, -13, 19), 14.0, (48, -17, 41), 12.5),  # ball of the thumb
    ((18, -8, -20), 13.0, (56, -8, -29), 11.5),  # ball of the little finger
    ((84, -7, 22), 8.0, (80, -6, -6), 8.0),  # pads below the fingers
    ((80, -6, -6), 8.0, (72, -8, -26), 8.0),
    ((36, -10, 26), 10.0, (46, -13, 36), 8.0),  # web of the thumb
    ((38, -8, 26), 10.0, (55, -9, 36), 6.0),
    ((44, -5, 26), 10.0, (64, -4, 32), 6.5),
    ((88, -1, 17), 8.0, (101, -3.5, 18.3), 4.5),  # webs of the fingers
    ((86, -1, -3), 8.0, (100, -3.5, -3.5), 4.5),
    ((75, -2, -21.8), 8.0, (86, -4.5, -23.3), 4.5),
)
_PALM_BLEND, _FINGER_BLEND = 4e-3, 2.5e-3  # metres over which cones flow into each other
_STEPS, _LAST_STEPS = 80, 3


class Flesh:
    """Palm and fingers as a field that is negative inside, in metres.

    Args:
        fingers: their bones.
    """

    def __init__(self, fingers: dict[str, Chain]) -> None:
        palm = [(*to_metres(a), 1e-3 * ra, *to_metres(b), 1e-3 * rb) for a, ra, b, rb in _PALM]
        bones = []
        for chain in fingers.values():
            place, radius = chain.profile[:, 0], chain.profile[:, 1:].mean(1)
            ends = [(*chain.points[i], np.interp(i, place, radius)) for i in range(3)]
            bones += [ends[0] + ends[1], ends[1] + ends[2]]
        self._palm, self._bones = np.array(palm), np.array(bones)  # (C, 8)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N,)."""
        palm = _smooth_minimum(_cone_distances(points, self._palm), _PALM_BLEND)
        bones = _cone_distances(points, self._bones)
        fingers = bones.reshape(len(points), -1, 2).min(2)  # two bones each
        return _smooth_minimum(np.column_stack([palm, fingers]), _FINGER_BLEND)

    def settle(self, points: np.ndarray, free: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
        """Draw vertices onto the surface, spread out evenly.

        Args:
            points: (V, 3), near the surface.
            free: indices of those that move.
            neighbours: (V, V), averages over the neighbours of each vertex.

        Returns:
            (V, 3).
        """
        points = points.copy()
        for _ in range(_STEPS):
            points[free] = self._project(0.5 * (points + neighbours @ points)[free])
        for _ in range(_LAST_STEPS):
            points[free] = self._project(points[free])
        return points

    def _project(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3): a step of Newton's method towards the surface, along the gradient."""
        step = 1e-6
        ends = points + step * np.vstack([np.zeros(3), np.eye(3)])[:, None]  # (4, N, 3)
        here, *ahead = self(ends.reshape(-1, 3)).reshape(4, -1)
        gradient = (np.stack(ahead, 1) - here[:, None]) / step  # (N, 3)
        length = (gradient**2).sum(1).clip(0.1)
        return points - (here / length)[:, None] * gradient


def _cone_distances(points: np.ndarray, cones: np.ndarray) -> np.ndarray:
    """(N, C): about how far `points` (N, 3) are from the surface of each cone."""
    start, end = cones[:, :3], cones[:, 4:7]
    axis = end - start
    from_start = points[:, None] - start  # (N, C, 3)
    t = np.clip((from_start * axis).sum(2) / (axis**2).sum(1), 0, 1)
    off_axis = np.linalg.norm(from_start - t[..., None] * axis, axis=2)
    return off_axis - cones[:, 3] - t * (cones[:, 7] - cones[:, 3])


def _smooth_minimum(distances: np.ndarray, blend: float) -> np.ndarray:
    """(N, C) -> (N,)."""
    least = distances.min(1)
    return least - blend * np.log(np.exp((least[:, None] - distances) / blend).sum(1))
