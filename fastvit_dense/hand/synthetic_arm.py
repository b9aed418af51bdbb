"""The arm behind the synthetic hand, bare or in a sleeve: it is seen in pictures, and in no annotation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .synthetic_skin import WRIST_SKIN

_STOPS = (
    np.array([10, 22, 38, 60, 90, 120, 180, 240, 300, 360, 420]) * 1e-3
)  # metres from the wrist's opening
_BENT_AFTER = 50e-3  # metres over which the wrist bends
# How thick the arm is, relative to the wrist's opening, that far from it.
_THICKNESS = np.array([(0, 1.0), (0.03, 1.0), (0.1, 1.12), (0.2, 1.4), (0.3, 1.5), (0.42, 1.4)])
_SLEEVE_WIDTH = 1.2  # relative to the arm in it


@dataclass(frozen=True)
class Arm:
    """A tube from the opening of the wrist on.

    Args:
        vertices: (N, 3), metres, camera frame.
        rest: (N, 3): where their skin is found on the resting hand, which `Skin` prolongs.
        wrist: (N,): which vertex of the opening, 0 to 15, each lies behind.
        faces: (F, 3), counterclockwise seen from outside.
        is_sleeve: (F,) bool.
    """

    vertices: np.ndarray
    rest: np.ndarray
    wrist: np.ndarray
    faces: np.ndarray
    is_sleeve: np.ndarray


def draw_arm(
    rng: np.random.Generator, opening: np.ndarray, rest: np.ndarray, turn: Rotation
) -> Arm:
    """Draw how the wrist is bent and where the sleeve begins, if there is one.

    Args:
        rng: where the randomness comes from.
        opening: (16, 3), the vertices around the wrist, camera frame.
        rest: (16, 3), the same of the resting hand.
        turn: from the frame of the resting hand into the camera's.
    """
    flexion = np.clip(18 * rng.standard_normal(), -35, 35)
    deviation = np.clip(7 * rng.standard_normal(), -15, 15)
    bend = np.radians([0, deviation, flexion])
    sleeve = rng.choice([0.0, rng.uniform(0.01, 0.15), np.inf], p=[0.25, 0.3, 0.45])
    centre = opening.mean(0)
    back = turn.inv().apply(opening - centre)  # (16, 3) in the frame of the resting hand

    def ring(behind: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        share = min(behind / _BENT_AFTER, 1)
        bent = bend * share * share * (3 - 2 * share)
        path = Rotation.from_rotvec(bend * 0.5 * share).apply([behind, 0, 0])
        width *= np.interp(behind, *_THICKNESS.T)
        around = Rotation.from_rotvec(bent).apply(width * back)
        # The skin of the wrist goes on up the arm, back and forth.
        along = WRIST_SKIN - abs(WRIST_SKIN - behind % (2 * WRIST_SKIN))
        return centre + turn.apply(path + around), rest + (along, 0, 0)

    skin = [(0.0, 1.0), *((s, 1.0) for s in _STOPS if s < sleeve)]
    cloth = []
    if np.isfinite(sleeve):
        skin.append((sleeve, 1.0))
        cloth = [(sleeve, 1.0), (sleeve, _SLEEVE_WIDTH)]
        cloth += [(s, _SLEEVE_WIDTH) for s in _STOPS if s > sleeve]
    rings = [ring(*stop) for stop in skin + cloth]
    count = len(opening)
    first = np.arange(count)
    after = np.roll(first, -1)
    strip = np.concatenate(  # from a ring to the one before it
        [
            np.stack([count + first, count + after, after], 1),
            np.stack([count + first, after, first], 1),
        ]
    )
    faces = np.concatenate([strip + i * count for i in range(len(rings) - 1)])
    step = np.repeat(np.arange(1, len(rings)), len(strip))
    joins = step == len(skin)  # between skin and cloth there is nothing
    return Arm(
        vertices=np.concatenate([r[0] for r in rings]),
        rest=np.concatenate([r[1] for r in rings]),
        wrist=np.tile(first, len(rings)),
        faces=faces[~joins],
        is_sleeve=(step > len(skin))[~joins],
    )
