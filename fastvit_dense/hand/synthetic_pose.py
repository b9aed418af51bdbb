"""Poses and shapes of the synthetic hand as people's hands take them.

Angles in degrees from the flat hand of the rest pose, within which poses are drawn. Flexion is towards
the palm. Abduction is towards the thumb for the fingers, which in the rest pose are spread by 5.5, 0.8,
-4.5 and -11, and away from the palm's edge for the thumb.

    joint                        flexion      abduction    twist
    base (MCP) of the index     -15 to  85    -6 to 14       0
    base of the middle finger   -15 to  88    -6 to  6       0
    base of the ring finger     -15 to  90    -9 to  5       0
    base of the little finger   -15 to  92   -16 to  8       0
    middle joint (PIP)            0 to 105       0           0
    end joint (DIP)              -5 to  75       0           0
    base (CMC) of the thumb     -12 to  42    -8 to 24    -8 to 20
    middle joint (MCP)          -10 to  50       0           0
    end joint (IP)              -15 to  75       0           0

These are within what counts as normal in the clinic (flexion of MCP 90, PIP 100, DIP 80, thumb MCP 55
and thumb IP 80) but for 5 degrees of PIP in a clenched fist. The end joint bends with the middle joint,
by two thirds of its angle (Rijpkema and Girard 1991, "Computer animation of knowledge-based human
grasping").
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.spatial.transform import Rotation

from .synthetic import synthetic_hand
from .synthetic_anatomy import chains, pose_from_angles
from .topology import NUM_BETAS, NUM_ROTATIONS, PARENTS

# The table above, (15, 3, 2) in radians: joints in MANO's order; flexion, abduction and twist; from, to.
_MIDDLE, _END = ((0, 105), (0, 0), (0, 0)), ((-5, 75), (0, 0), (0, 0))
LIMITS = np.radians(
    [
        ((-15, 85), (-6, 14), (0, 0)), _MIDDLE, _END,
        ((-15, 88), (-6, 6), (0, 0)), _MIDDLE, _END,
        ((-15, 92), (-16, 8), (0, 0)), _MIDDLE, _END,
        ((-15, 90), (-9, 5), (0, 0)), _MIDDLE, _END,
        ((-12, 42), (-8, 24), (-8, 20)),
        ((-10, 50), (0, 0), (0, 0)),
        ((-15, 75), (0, 0), (0, 0)),
    ]
)  # fmt: skip

# How often; how far index, middle, little and ring finger are closed, 0 to 1; how far the thumb is laid
# over the palm and how far it is bent; how much all of this varies.
_GRASPS = np.array(
    [
        (0.20, 0.06, 0.06, 0.06, 0.06, 0.15, 0.10, 0.08),  # open
        (0.18, 0.30, 0.34, 0.40, 0.38, 0.40, 0.25, 0.12),  # relaxed
        (0.10, 0.90, 0.92, 0.92, 0.92, 0.75, 0.70, 0.08),  # fist
        (0.04, 0.92, 0.93, 0.93, 0.93, 0.00, 0.05, 0.06),  # thumb up
        (0.08, 0.06, 0.85, 0.88, 0.88, 0.70, 0.60, 0.10),  # pointing
        (0.06, 0.06, 0.06, 0.88, 0.85, 0.80, 0.60, 0.08),  # two fingers
        (0.10, 0.52, 0.45, 0.30, 0.38, 0.75, 0.35, 0.10),  # pinch
        (0.12, 0.55, 0.58, 0.60, 0.60, 0.70, 0.30, 0.10),  # around a bottle
        (0.12, 0.45, 0.45, 0.45, 0.45, 0.45, 0.40, 0.40),  # anything
    ]
)


_OPEN, _FIST = _GRASPS[0], _GRASPS[2]


# Axes of bones may come this near, in parts of the sum of their radii, since flesh gives way.
_NEAR = 0.8
_METACARPAL_RADIUS = 11e-3


def sample_pose(
    rng: np.random.Generator, count: int, *, poses: str = "all", views: float = 180
) -> np.ndarray:
    """Draw poses within the limits above, in which the fingers do not pass through one another.

    Args:
        rng: where the randomness comes from.
        count: number of poses n.
        poses: ``all`` that there are, or ``closing``: between open and a fist, all fingers alike.
        views: greatest turn, in degrees, from a palm that faces the camera, fingers up.

    Returns:
        (n, 48), axis-angle in radians as FreiHAND stores them: the turn of the whole hand from MANO's
        frame into the camera's, and the 15 joints relative to the model's `pose_mean`.
    """
    angles = _draw_angles(rng, count, poses)
    again = np.flatnonzero(_collide(angles))
    while len(again):
        angles[again] = _draw_angles(rng, len(again), poses)
        again = again[_collide(angles[again])]
    fingers = pose_from_angles(angles) - synthetic_hand().pose_mean
    return np.concatenate([_draw_orientations(rng, count, views), fingers], axis=1)


def sample_betas(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw shapes, (n, 10): standard normal, cut off at 2.5."""
    return np.clip(rng.standard_normal((count, NUM_BETAS)), -2.5, 2.5)


def _draw_angles(rng: np.random.Generator, count: int, poses: str) -> np.ndarray:
    """(n, 15, 3), radians: flexion, abduction, twist of each joint, within `LIMITS`."""
    if poses == "closing":
        # Moments of a hand that opens and closes steadily: it is slowest where it turns back.
        closing = (1 - np.cos(np.pi * rng.random((count, 1)))) / 2
        grasp = _OPEN + closing * (_FIST - _OPEN)  # (n, 8)
        grasp[:, 7] *= 0.4  # fingers that differ little
    else:
        grasp = _GRASPS[rng.choice(len(_GRASPS), count, p=_GRASPS[:, 0])]
    vary = grasp[:, 7:]
    common = 0.6 * rng.standard_normal((count, 1))  # fingers move together
    closed = grasp[:, 1:5] + vary * (common + 0.8 * rng.standard_normal((count, 4)))
    # The base and the middle joint share the closing in proportions that differ from hand to hand.
    shift = 0.12 * rng.standard_normal((count, 1)) + 0.05 * rng.standard_normal((count, 4))
    shift *= 4 * closed.clip(0, 1) * (1 - closed.clip(0, 1)) + 0.15
    base, middle = (closed + shift).clip(0, 1), (closed - shift).clip(0, 1)

    angles = np.zeros((count, 15, 3))
    fingers = angles[:, :12].reshape(count, 4, 3, 3)  # a view: finger, joint, angle
    limits = LIMITS[:12].reshape(4, 3, 3, 2)
    fingers[:, :, 0, 0] = _between(limits[:, 0, 0], base, from_share=0.08)
    fingers[:, :, 1, 0] = _between(limits[:, 1, 0], middle, from_share=0.02)
    fingers[:, :, 2, 0] = fingers[:, :, 1, 0] * rng.normal(0.66, 0.08, (count, 4))
    fingers[:, :, 2, 0] += np.radians(3) * rng.standard_normal((count, 4))
    # Bent fingers cannot be spread.
    spread = rng.uniform(-0.5, 1, (count, 1)) * np.radians((9, 1, -9, -4))
    spread = spread + np.radians(1.2) * rng.standard_normal((count, 4))
    fingers[:, :, 0, 1] = spread * (1 - base)

    over, bent = (grasp[:, 5:7] + vary * rng.standard_normal((count, 2))).clip(0, 1).T
    noise = rng.standard_normal((count, 5))
    angles[:, 12, 0] = np.radians(-10 + 48 * over + 4 * noise[:, 0])
    angles[:, 12, 1] = np.radians(12 - 8 * over + 7 * noise[:, 1])
    angles[:, 12, 2] = np.radians(14 * over + 3 * noise[:, 2])
    angles[:, 13, 0] = np.radians(-4 + 50 * bent + 5 * noise[:, 3])
    angles[:, 14, 0] = np.radians(-6 + 75 * bent + 9 * noise[:, 4])
    return angles.clip(LIMITS[..., 0], LIMITS[..., 1])


def _between(limits: np.ndarray, share: np.ndarray, *, from_share: float) -> np.ndarray:
    """Angles between `limits` (4, 2): `share` (n, 4) of what is left beyond `from_share`."""
    low, high = limits.T
    return low + (high - low) * (from_share + (1 - from_share) * share)


# From MANO's frame (fingers -x, back +y, thumb +z) to a palm before the camera: fingers up, which is -y.
_FRONT = Rotation.from_matrix([[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def _draw_orientations(rng: np.random.Generator, count: int, views: float) -> np.ndarray:
    """(n, 3), axis-angle: any, but rather with the fingers up than down, and seldom along the arm."""
    vectors = np.empty((count, 3))
    missing = np.arange(count)
    while len(missing):
        turns = Rotation.random(len(missing), rng=rng)
        if views < 180:
            far = np.radians(views) * rng.random((len(missing), 1)) ** (1 / 3)
            turns = Rotation.from_rotvec(far * _unit(turns.as_rotvec())) * _FRONT
        _, down, away = turns.apply([-1, 0, 0]).T  # where the fingers point
        # From behind, the arm hides the hand.
        likely = (0.6 - 0.4 * down) * np.clip(
            (0.92 - np.where(away > 0, away, 0.85 * -away)) / 0.4, 0, 1
        )
        accepted = rng.random(len(missing)) < likely
        vectors[missing[accepted]] = turns[accepted].as_rotvec()
        missing = missing[~accepted]
    return vectors


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _collide(angles: np.ndarray) -> np.ndarray:
    """(n,) bool: whether a finger passes through another one or through the palm."""
    starts, ends = _bones(angles)
    first, second, least = _apart()
    gaps = _segment_distances(starts[:, first], ends[:, first], starts[:, second], ends[:, second])
    return np.any(gaps < least, axis=1)


def _bones(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends, (n, 19, 3): the 15 bones that turn with the joints, then four metacarpals."""
    hand = synthetic_hand()
    rest = hand.joint_regressor @ hand.template  # (16, 3)
    count = len(angles)
    turns = Rotation.from_rotvec(pose_from_angles(angles).reshape(-1, 3)).as_matrix()
    turns = turns.reshape(count, 15, 3, 3)
    turned = np.tile(np.eye(3), (count, NUM_ROTATIONS, 1, 1))
    joints = np.tile(rest, (count, 1, 1))
    for j in range(1, NUM_ROTATIONS):
        parent = PARENTS[j]
        joints[:, j] = joints[:, parent] + turned[:, parent] @ (rest[j] - rest[parent])
        turned[:, j] = turned[:, parent] @ turns[:, j - 1]
    bones = np.stack([np.diff(c.points, axis=0) for c in chains().values()]).reshape(15, 3)
    bones[2::3] *= 0.75  # the round end of the tip is the capsule's own
    starts = joints[:, 1:]
    ends = starts + (turned[:, 1:] @ bones[..., None])[..., 0]
    heads = joints[:, 1:13:3]
    return (
        np.concatenate([starts, np.broadcast_to(0.3 * heads, heads.shape)], 1),
        np.concatenate([ends, heads], 1),
    )


@functools.cache
def _apart() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of bones, as two arrays of indices, and how near their axes may come to each other."""
    middles = np.arange(3) + 0.5
    fingers = [np.interp(middles, c.profile[:, 0], c.profile[:, 1]) for c in chains().values()]
    radii = np.concatenate([*fingers, np.full(4, _METACARPAL_RADIUS)])
    finger = np.repeat(range(5), 3)
    pairs = [(i, j) for i in range(15) for j in range(i) if finger[i] != finger[j]]
    # The palm ends where the first bones of the fingers begin, and the thumb's first lies in it.
    pairs += [(i, j) for i in range(15) if i % 3 for j in range(15, 19)]
    first, second = np.array(pairs).T
    return first, second, _NEAR * (radii[first] + radii[second])


def _segment_distances(
    a0: np.ndarray, a1: np.ndarray, b0: np.ndarray, b1: np.ndarray
) -> np.ndarray:
    """(...,): the shortest distances between segments a0 to a1 and b0 to b1, (..., 3) each.

    It is at an end of one of the two, or where the lines come nearest, if that is within both.
    """
    a, b, between = a1 - a0, b1 - b0, a0 - b0
    aa, bb, ab = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
    ac, bc = (a * between).sum(-1), (b * between).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        s = (ab * bc - bb * ac) / (aa * bb - ab * ab)
        t = (aa * bc - ab * ac) / (aa * bb - ab * ab)
    crossing = (s > 0) & (s < 1) & (t > 0) & (t < 1)
    s, t = np.where(crossing, s, 0), np.where(crossing, t, 0)
    nearest = np.linalg.norm(between + s[..., None] * a - t[..., None] * b, axis=-1)
    for end, start, axis, squared in (
        (a0, b0, b, bb), (a1, b0, b, bb), (b0, a0, a, aa), (b1, a0, a, aa)
    ):  # fmt: skip
        offset = end - start
        along = np.clip((offset * axis).sum(-1) / squared, 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(offset - along[..., None] * axis, axis=-1))
    return nearest
