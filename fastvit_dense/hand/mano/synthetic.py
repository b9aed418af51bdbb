"""A procedural hand model, with the counts and conventions of MANO.

It takes MANO's place wherever the licensed file is not at hand: the arrays have MANO's shapes, the
joints its order, and the rest pose its frame (a flat right hand, fingers along -x, back towards +y,
thumb towards +z). The numbers are other ones: poses and betas of one model mean nothing to the other.

Legend for shapes: V = 778 vertices, J = 16 joints.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from .arrays import Mano
from .surface import Chain, Surface, build_surface, chains, pose_from_angles
from .topology import NUM_BETAS, NUM_ROTATIONS, NUM_VERTICES, PARENTS

# Half the length (m) over which a vertex goes over from following one bone to following the next, at the
# three joints of a finger and of the thumb.
_BLEND = {"finger": (13e-3, 7e-3, 6e-3), "thumb": (17e-3, 10e-3, 8e-3)}
_NEIGHBOUR_BLEND = 7e-3  # metres; how far the motions of neighbouring fingers mix in the palm
_SMOOTHING = 4  # times the weights are averaged with those of the neighbours
_LEAST_WEIGHT = 0.01
# What one standard deviation of each beta does, in percent of the length, thickness and breadth of
# parts. A part is the palm, a finger, or the first, second or third bone of the fingers.
_EVERY_FINGER = ("index", "middle", "little", "ring", "thumb")
_SHAPES: tuple[Mapping[str, tuple[float, float, float]], ...] = (
    dict.fromkeys(("palm", *_EVERY_FINGER), (4.5, 4.5, 4.5)),  # size
    dict.fromkeys(_EVERY_FINGER, (5, 0, 0)) | {"palm": (-2, 0, 0)},  # long fingers
    dict.fromkeys(("palm", *_EVERY_FINGER), (-1, 6, 5)),  # stout
    {"palm": (0, 0, 5)},  # broad palm
    {"palm": (1, 7, 0), "thumb 1": (0, 7, 5)},  # thick palm
    {"thumb": (6, 0, 0)},  # long thumb
    {"index": (4, 0, 0), "ring": (-4, 0, 0)},  # index longer than the ring finger
    {"little": (8, 2, 2)},  # long little finger
    {f"{finger} 3": (6, 5, 6) for finger in _EVERY_FINGER},  # big fingertips
    {f"{finger} 1": (1, 8, 8) for finger in _EVERY_FINGER}
    | {f"{finger} 3": (0, -6, -7) for finger in _EVERY_FINGER},  # tapering fingers
)
# Metres by which the knuckle, and the flesh inside the bend, swell where a joint bends by 90 degrees.
_KNUCKLE, _FOLD, _SWOLLEN_LENGTH = 3.0e-3, 1.5e-3, 7e-3
# A relaxed hand: degrees of flexion of each finger's three joints, in MANO's order; the thumb is abducted.
_RELAXED = ((20, 28, 14), (24, 32, 16), (28, 34, 18), (26, 34, 17), (6, 14, 16))
_RELAXED_THUMB = 8


@functools.cache
def synthetic_hand() -> Mano:
    """The synthetic hand: 778 vertices, 1538 faces, 16 joints, 10 betas.

    It measures 186 mm from wrist to middle fingertip and 84 mm across the palm. Betas of a standard
    normal distribution give hands as they differ between adults. Computed once, in about a second.

    Returns:
        The model; its arrays are read-only.
    """
    surface, fingers = build_surface(), chains()
    regressor = _joint_regressor(surface, fingers)
    joints = regressor @ surface.vertices
    weights = _skinning_weights(surface, fingers)
    frames = _frames(fingers)
    angles = np.zeros((1, 15, 3))
    angles[0, :, 0], angles[0, 12, 1] = np.radians(_RELAXED).ravel(), np.radians(_RELAXED_THUMB)
    return Mano(
        template=surface.vertices,
        faces=surface.faces,
        shape_directions=_shape_directions(surface.vertices, joints, weights, frames),
        pose_directions=_pose_directions(surface.vertices, joints, weights, frames),
        joint_regressor=regressor,
        skinning_weights=weights,
        pose_components=np.eye(45),
        pose_mean=pose_from_angles(angles)[0],
    )


def wrist_opening() -> np.ndarray:
    """(16,): the vertices around the opening at the wrist, in order."""
    return build_surface().wrist


def _frames(fingers: dict[str, Chain]) -> np.ndarray:
    """(J, 3, 3): along, up and across the bone that follows each joint, as rows."""
    palm = np.array([[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    rest = [np.stack([c.distal, c.dorsal, c.flexion], 1) for c in fingers.values()]
    return np.concatenate([palm[None], *rest])


def _joint_regressor(surface: Surface, fingers: dict[str, Chain]) -> np.ndarray:
    """(J, V): each joint is a mean of the vertices around it, in the palm or on its finger."""
    regressor = np.zeros((NUM_ROTATIONS, NUM_VERTICES))
    own = surface.fingers
    palm = np.setdiff1d(np.arange(NUM_VERTICES), np.concatenate(list(own.values())))
    regressor[0] = _mean_at(np.zeros(3), surface.vertices, palm, 34e-3)
    for i, (name, chain) in enumerate(fingers.items()):
        for k in range(3):
            among, radius = (own[name], 20e-3) if k else (palm, 24e-3)
            regressor[1 + 3 * i + k] = _mean_at(chain.points[k], surface.vertices, among, radius)
    return regressor


def _mean_at(
    target: np.ndarray, vertices: np.ndarray, among: np.ndarray, radius: float
) -> np.ndarray:
    """(V,) weights, as equal as can be, of the vertices within `radius` whose mean is `target`."""
    near = among[np.linalg.norm(vertices[among] - target, axis=1) < radius]
    result = np.zeros(len(vertices))
    while True:
        equal = np.full(len(near), 1 / len(near))
        conditions = np.vstack([vertices[near].T - target[:, None], np.ones(len(near))])  # (4, n)
        missing = np.array([0, 0, 0, 1]) - conditions @ equal
        weights = equal + np.linalg.pinv(conditions) @ missing  # the smallest change that fits
        if (weights >= 0).all():
            result[near] = weights
            return result
        near = near[weights >= 0]


def _skinning_weights(surface: Surface, fingers: dict[str, Chain]) -> np.ndarray:
    """(V, J): along each finger from bone to bone, between the fingers by their distance."""
    vertices = surface.vertices
    # A finger's metacarpal, from the wrist on, is in the palm; the thumb's is the first bone of its chain.
    lines = [
        c.points if name == "thumb" else np.vstack([np.zeros(3), c.points])
        for name, c in fingers.items()
    ]
    distance = np.stack([_distance(vertices, line) for line in lines], 1)  # (V, 5)
    share = np.exp(-(distance**2 - distance.min(1, keepdims=True) ** 2) / (2 * _NEIGHBOUR_BLEND**2))
    share /= share.sum(1, keepdims=True)
    for i, name in enumerate(fingers):  # beyond the palm they do not mix
        share[surface.fingers[name]] = np.arange(len(fingers)) == i
    weights = np.zeros((NUM_VERTICES, NUM_ROTATIONS))
    for i, (name, chain) in enumerate(fingers.items()):
        widths = _BLEND["thumb" if name == "thumb" else "finger"]
        passed = [np.ones(NUM_VERTICES)]
        for k, width in enumerate(widths):
            normal = chain.distal[max(k - 1, 0)] + chain.distal[k]
            normal /= np.linalg.norm(normal)
            passed.append(_smoothstep((vertices - chain.points[k]) @ normal / width))
        weights[:, 0] += share[:, i] * (1 - passed[1])
        for k in (1, 2, 3):
            weights[:, 3 * i + k] = share[:, i] * (passed[k] - (passed[k + 1] if k < 3 else 0))
    weights = np.maximum(weights, 0)
    mean = _neighbour_mean(vertices, surface.faces)
    for _ in range(_SMOOTHING):
        weights = 0.5 * (weights + mean @ weights)
    weights[weights < _LEAST_WEIGHT] = 0
    return weights / weights.sum(1, keepdims=True)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    """From 0 at -1 to 1 at 1, level at both ends."""
    t = np.clip((x + 1) / 2, 0, 1)
    return t * t * (3 - 2 * t)


def _distance(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """(V,): the distance to a line of straight pieces between points (n, 3)."""
    best = np.full(len(points), np.inf)
    for a, b in zip(line, line[1:], strict=False):
        t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - a - t[:, None] * (b - a), axis=1))
    return best


def _neighbour_mean(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, V): averages over the neighbours of each vertex, in which the near ones count more."""
    linked = np.zeros((NUM_VERTICES, NUM_VERTICES))
    for a, b in (faces[:, [0, 1]].T, faces[:, [1, 2]].T, faces[:, [2, 0]].T):
        nearness = 1 / np.linalg.norm(vertices[a] - vertices[b], axis=1)
        linked[a, b] = linked[b, a] = nearness
    return linked / linked.sum(1, keepdims=True)


def _shape_directions(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """(V, 3, 10): each part is stretched about its joint, takes along what follows it, and is
    blended with the others as in skinning."""
    parts = ["palm"] + [f"{finger} {k}" for finger in _EVERY_FINGER for k in (1, 2, 3)]
    directions = np.zeros((NUM_VERTICES, 3, NUM_BETAS))
    for beta, shape in enumerate(_SHAPES):
        moved = np.zeros_like(joints)
        stretch = np.zeros((NUM_ROTATIONS, 3, 3))
        for j, part in enumerate(parts):
            percent = np.array(shape.get(part, shape.get(part.split()[0], (0, 0, 0))))
            stretch[j] = frames[j].T @ np.diag(percent / 100) @ frames[j]
            if (parent := PARENTS[j]) >= 0:
                moved[j] = moved[parent] + stretch[parent] @ (joints[j] - joints[parent])
        offset = vertices[:, None] - joints  # (V, J, 3)
        by_part = np.einsum("jab,vjb->vja", stretch, offset) + moved
        directions[..., beta] = np.einsum("vj,vja->va", weights, by_part)
    return directions


def _pose_directions(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, frames: np.ndarray
) -> np.ndarray:
    """(V, 3, 135): swelling in proportion to 1 - cos of the angle between a bone and the one before.

    With the bone's direction d, which R turns, this is -d^T (R - I) d: linear in the entries of R - I.
    """
    directions = np.zeros((NUM_VERTICES, 3, NUM_ROTATIONS - 1, 9))
    for j in range(1, NUM_ROTATIONS):
        along, up, _ = frames[j]
        offset = vertices - joints[j]
        near = np.exp(-0.5 * ((offset @ along) / _SWOLLEN_LENGTH) ** 2)
        height = np.clip(offset @ up / 10e-3, -1, 1)
        strength = np.where(height > 0, _KNUCKLE, _FOLD) * height * near
        involved = weights[:, j] + weights[:, PARENTS[j]] if j % 3 != 1 else weights[:, j]
        swelling = (strength * involved)[:, None] * up  # (V, 3)
        directions[:, :, j - 1] = -swelling[..., None] * np.outer(along, along).ravel()
    return directions.reshape(NUM_VERTICES, 3, -1)
