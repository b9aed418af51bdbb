"""Measures of the synthetic hand: its bones, their frames, and how thick it is along them.

A hand of 186 mm from wrist to middle fingertip, between the medians of women and men, with bones in
proportions close to those of Buchholz, Armstrong and Goldstein (1992), "Anthropometric data for
describing the kinematics of the human hand".

The rest pose is a flat right hand in MANO's frame: the fingers along -x, the back of the hand towards
+y, the thumb towards +z. The tables below are in millimetres, and their points are (distal, dorsal,
radial) from the wrist, which is (-x, y, z).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

# In MANO's order: first joint (mm), spread towards the thumb (degrees), lengths of the three bones (mm),
# thickness relative to the middle finger's, and the direction the nail looks in.
_FINGERS: dict[str, tuple[tuple, float, tuple, float, tuple]] = {
    "index": ((86, 1, 26.5), 5.5, (42, 25, 21), 0.97, (0, 1, 0.10)),
    "middle": ((89, 2.5, 7), 0.8, (46, 29, 22), 1.0, (0, 1, 0)),
    "little": ((73, -1.5, -30), -11, (33.5, 20, 19), 0.85, (0, 1, -0.22)),
    "ring": ((82.5, 1.5, -12.5), -4.5, (42.5, 27.5, 22), 0.95, (0, 1, -0.10)),
}
_THUMB_POINTS = ((19, -11, 24), (51, -20, 51), (78, -25, 70), (104, -28, 84))
_THUMB_NAIL = (-0.25, 0.80, 0.55)

# Half the breadth, the thickness above and the thickness below the bones (mm), at a place given in
# bones from the first joint: 1 is the second joint, 2 the third. The fingertip, from _CAP on, is round.
_FINGER_PROFILE = np.array(
    [
        (0.0, 10.8, 10.0, 10.8),
        (0.5, 9.9, 8.9, 10.2),
        (0.8, 9.8, 8.9, 9.5),
        (1.0, 10.1, 9.5, 9.2),
        (1.25, 9.4, 8.3, 9.2),
        (1.55, 9.0, 7.9, 9.1),
        (1.8, 8.8, 7.8, 8.2),
        (2.0, 8.9, 8.0, 7.8),
        (2.25, 8.6, 7.1, 8.2),
        (2.55, 8.3, 6.6, 8.1),
    ]
)
_THUMB_PROFILE = np.array(
    [
        (0.0, 14.0, 13.0, 14.0),
        (0.6, 12.6, 11.4, 12.6),
        (1.0, 11.8, 10.8, 11.3),
        (1.5, 10.3, 8.8, 9.9),
        (1.8, 10.6, 9.0, 9.4),
        (2.0, 11.2, 9.3, 9.2),
        (2.25, 10.9, 8.0, 9.8),
        (2.55, 10.2, 7.2, 9.6),
    ]
)
_CAP = 2.5


@dataclass(frozen=True)
class Chain:
    """A finger or the thumb: three bones and their frames.

    Args:
        points: (4, 3), metres: the three joints and the tip.
        dorsal: (3, 3): the unit vector of each bone away from the palm, at right angles to it.
        profile: (n, 4): see `_FINGER_PROFILE`, but in metres.
    """

    points: np.ndarray
    dorsal: np.ndarray
    profile: np.ndarray

    @property
    def distal(self) -> np.ndarray:
        """(3, 3): the unit vector along each bone."""
        bones = np.diff(self.points, axis=0)
        return bones / np.linalg.norm(bones, axis=1, keepdims=True)

    @property
    def flexion(self) -> np.ndarray:
        """(3, 3): the axis about which each bone bends towards the palm, for positive angles."""
        return np.cross(self.dorsal, self.distal)

    def ring(self, place: float, angles: np.ndarray) -> np.ndarray:
        """Points around the finger.

        Args:
            place: in bones from the first joint: 1 is the second joint, 3 the tip.
            angles: (n,), radians, from the flexion axis over the back.

        Returns:
            (n, 3), metres.
        """
        bone = min(int(place), 2)
        centre = self.points[bone] + (place - bone) * (self.points[bone + 1] - self.points[bone])
        # From a quarter of a bone on before a joint, rings turn from one bone's frame to the next one's.
        shares = np.array([np.interp(place, _TURN_AT, column) for column in _TURN.T])
        dorsal, across = shares @ self.dorsal, shares @ self.flexion
        breadth, above, below = (
            np.interp(place, self.profile[:, 0], column) for column in self.profile[:, 1:].T
        )
        shrink = (1 - max(0.0, (place - _CAP) / (3 - _CAP)) ** 2.2) ** (1 / 2.2)
        sideways, up = breadth * np.cos(angles), np.sin(angles)
        up = up * np.where(up > 0, above, below)
        return centre + shrink * (sideways[:, None] * across + up[:, None] * dorsal)


# The shares of the three bones' frames in that of a ring, at places between which they are linear.
_TURN_AT = (0.75, 1.25, 1.75, 2.25)
_TURN = np.array([(1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 1)])


def to_metres(points: object) -> np.ndarray:
    """(..., 3) millimetres (distal, dorsal, radial) -> metres in MANO's frame."""
    return np.asarray(points, np.float64) * (-1e-3, 1e-3, 1e-3)


def _chain(points: np.ndarray, nail: tuple, profile: np.ndarray) -> Chain:
    bones = np.diff(points, axis=0)
    distal = bones / np.linalg.norm(bones, axis=1, keepdims=True)
    up = to_metres(nail)
    dorsal = up - distal * (distal @ up)[:, None]
    dorsal /= np.linalg.norm(dorsal, axis=1, keepdims=True)
    return Chain(points, dorsal, profile * (1, 1e-3, 1e-3, 1e-3))


@functools.cache
def chains() -> dict[str, Chain]:
    """The five chains of the resting hand, by name, in MANO's order."""
    out = {}
    for name, (first, spread, lengths, thickness, nail) in _FINGERS.items():
        turn = np.radians(spread)
        along = np.cumsum([0, *lengths])[:, None] * (np.cos(turn), 0, np.sin(turn))
        points = to_metres(np.asarray(first) + along)
        out[name] = _chain(points, nail, _FINGER_PROFILE * (1, *[thickness] * 3))
    out["thumb"] = _chain(to_metres(_THUMB_POINTS), _THUMB_NAIL, _THUMB_PROFILE)
    return out


def pose_from_angles(angles: np.ndarray) -> np.ndarray:
    """Turn angles of joints into axis-angle vectors.

    Args:
        angles: (n, 15, 3), radians: for each joint of the fingers, in MANO's order, flexion (towards the
            palm), abduction (of fingers towards the thumb, of the thumb away from the palm) and twist
            about the bone. Twist comes first, then flexion, then abduction.

    Returns:
        (n, 45), radians.
    """
    count = len(angles)
    frames = [(c.flexion, c.dorsal, c.distal) for c in chains().values()]
    axes = np.concatenate([np.stack(f, 1) for f in frames])  # (15, 3, 3): joint, angle, xyz
    vectors = angles[..., None] * axes  # (n, 15, 3, 3)
    flexion, abduction, twist = (
        Rotation.from_rotvec(vectors[:, :, k].reshape(-1, 3)) for k in range(3)
    )
    return (abduction * flexion * twist).as_rotvec().reshape(count, 45)
