"""The synthetic hand's bones, flesh and surface: 778 vertices and 1538 faces, as MANO's."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ..render import unit
from .topology import FINGERS, FINGERTIP_VERTICES

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
# Columns: a place in bones from the first joint (1 is the second joint, 2 the third); there half the
# breadth, the thickness above and that below the bones (mm). The fingertip, from _CAP on, is round.
_FINGER_PROFILE = np.array(
    [
        (0.0, 0.5, 0.8, 1.0, 1.25, 1.55, 1.8, 2.0, 2.25, 2.55),
        (10.8, 9.9, 9.8, 10.1, 9.4, 9.0, 8.8, 8.9, 8.6, 8.3),
        (10.0, 8.9, 8.9, 9.5, 8.3, 7.9, 7.8, 8.0, 7.1, 6.6),
        (10.8, 10.2, 9.5, 9.2, 9.2, 9.1, 8.2, 7.8, 8.2, 8.1),
    ]
).T
_THUMB_PROFILE = np.array(
    [
        (0.0, 0.6, 1.0, 1.5, 1.8, 2.0, 2.25, 2.55),
        (14.0, 12.6, 11.8, 10.3, 10.6, 11.2, 10.9, 10.2),
        (13.0, 11.4, 10.8, 8.8, 9.0, 9.3, 8.0, 7.2),
        (14.0, 12.6, 11.3, 9.9, 9.4, 9.2, 9.8, 9.6),
    ]
).T
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
        return unit(np.diff(self.points, axis=0))

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
    distal, up = unit(np.diff(points, axis=0)), to_metres(nail)
    dorsal = unit(up - distal * (distal @ up)[:, None])
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


# Cones from a point with a radius to another; mm.
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
        """Pull vertices onto the surface, spread out evenly.

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


_COLUMNS, _WRIST_COLUMNS, _FINGER_COLUMNS = 20, 16, 8  # vertices around palm, wrist and finger
_RINGS = 10  # of the palm, between both ends
_WRIST_END = (-18, 17, 28)  # mm: how far distal the opening is, half its thickness and breadth
# The hole for the thumb: the rings of the palm at both ends of it, and the column in its middle. It is
# first pulled to this place of the thumb, in this many steps.
_HOLE, _HOLE_COLUMN = (3, 6), 19
_HOLE_PLACE, _PULLING = 0.3, 80


def _places(start: float, to_second: int, to_third: int, beyond: tuple) -> tuple[float, ...]:
    """Places of a finger's rings, as in `Chain.ring`.

    Args:
        start: where it leaves the palm.
        to_second: number of rings from there to the second joint.
        to_third: number of rings from there to the third joint.
        beyond: places of the others.
    """
    first = np.linspace(start, 1, to_second + 1)
    return (*first, *np.linspace(1, 2, to_third + 1)[1:], *beyond)


_FINGERTIP = (2.28, 2.52, 2.72, 2.87, 2.96)
_FINGER_RINGS = {
    "index": _places(0.50, 4, 4, _FINGERTIP),
    "middle": _places(0.46, 5, 4, _FINGERTIP),
    "little": _places(0.70, 3, 4, _FINGERTIP),
    "ring": _places(0.48, 4, 4, _FINGERTIP),
    "thumb": _places(0.70, 3, 6, (2.2, 2.4, 2.58, 2.74, 2.87, 2.96)),
}
_IN_FLESH, _THUMB_IN_FLESH = (
    2,
    4,
)  # how many of the first rings beyond the palm are pulled onto the flesh
_OCTAGON = 1.04  # an octagon of this radius has about the area of the unit circle
# Where the fingers begin: corners of octagons, of which 0 to 19 run around the outline of all four and
# 20 to 22 are in the middles of the webs.
_OCTAGONS = {
    "index": (0, 1, 2, 3, 20, 17, 18, 19),
    "middle": (20, 3, 4, 5, 21, 15, 16, 17),
    "ring": (21, 5, 6, 7, 22, 13, 14, 15),
    "little": (22, 7, 8, 9, 10, 11, 12, 13),
}
_CORNERS = 23


@dataclass(frozen=True)
class Surface:
    """The mesh of the resting hand.

    Args:
        vertices: (778, 3), metres, in MANO's frame.
        faces: (1538, 3), counterclockwise seen from outside.
        wrist: (16,), the vertices around the opening, in order.
        fingers: the vertices of each finger beyond where it leaves the palm, without the tip.
    """

    vertices: np.ndarray
    faces: np.ndarray
    wrist: np.ndarray
    fingers: dict[str, np.ndarray]


@functools.cache
def build_surface() -> Surface:
    """Build the mesh of the resting hand, once; it takes about a second."""
    fingers, builder = chains(), _Builder()
    wrist, begins = _add_palm(builder, fingers)
    free = list(range(_WRIST_COLUMNS, len(builder.points)))
    rings, tips = {}, {}
    for name, chain in fingers.items():
        rings[name], tips[name] = _add_finger(builder, chain, _FINGER_RINGS[name], begins[name])
        free += sum(rings[name][: _THUMB_IN_FLESH if name == "thumb" else _IN_FLESH], [])

    neighbours = builder.neighbour_mean()
    root = fingers["thumb"].ring(_HOLE_PLACE, _angles(len(begins["thumb"])))
    points = np.array(builder.points)
    # Move the hole to the thumb; the palm follows, the nearer the more.
    hole, palm = builder.turned(begins["thumb"], root), slice(_WRIST_COLUMNS, begins["index"][0])
    shift = np.zeros_like(points)
    for _ in range(_PULLING):
        shift[palm] = (neighbours @ shift)[palm]
        shift[hole] = root - points[hole]
    points += shift
    points = Flesh(fingers).settle(points, np.array(free), neighbours)

    order = _order_with_tips(len(points), [tips[name] for name in FINGERS])
    number = np.argsort(order)  # its inverse
    return Surface(
        vertices=points[order],
        faces=number[_triangles(points, builder.polygons)],
        wrist=number[wrist],
        fingers={name: number[np.concatenate(loops)] for name, loops in rings.items()},
    )


class _Builder:
    """Vertices and polygons as they are added.

    Loops are lists of vertices, closed, that run counterclockwise seen from where the hand goes on.
    """

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.polygons: list[list[int]] = []

    def add(self, points: np.ndarray) -> list[int]:
        """Append vertices (n, 3); returns their numbers."""
        first = len(self.points)
        self.points.extend(points)
        return list(range(first, len(self.points)))

    def bridge(self, a: list[int], b: list[int], *, skip: tuple[int, ...] = ()) -> None:
        """Add quads from loop `a` on to `b`, and triangles where their counts differ.

        Those that begin at the entries `skip` of `a` are left out.
        """
        i = j = 0
        n, m = len(a), len(b)
        while i < n or j < m:
            lead = (i + 1) * m - (j + 1) * n  # the loop that lags takes the next step
            polygon = [a[i % n]]
            if lead <= 0:
                polygon.append(a[(i + 1) % n])
            if lead >= 0:
                polygon.append(b[(j + 1) % m])
            if i not in skip:
                self.polygons.append([*polygon, b[j % m]])
            i, j = i + (lead <= 0), j + (lead >= 0)

    def turned(self, loop: list[int], target: np.ndarray) -> list[int]:
        """`loop`, begun where it is nearest to `target` (n, 3), each at its share of the way."""
        there = target[np.arange(len(loop)) * len(target) // len(loop)]
        here = np.array([self.points[i] for i in loop])
        costs = [((np.roll(here, -k, axis=0) - there) ** 2).sum() for k in range(len(loop))]
        k = int(np.argmin(costs))
        return loop[k:] + loop[:k]

    def neighbour_mean(self) -> np.ndarray:
        """(V, V): averages over the neighbours of each vertex."""
        linked = np.zeros((len(self.points), len(self.points)))
        for polygon in self.polygons:
            for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
                linked[a, b] = linked[b, a] = 1
        return linked / linked.sum(1, keepdims=True)


def _angles(count: int) -> np.ndarray:
    return 2 * np.pi * np.arange(count) / count


def _wrist(count: int) -> np.ndarray:
    """(count, 3): around the opening."""
    distal, thickness, breadth = _WRIST_END
    a = _angles(count)
    return to_metres(
        np.stack([np.full(count, distal), thickness * np.sin(a), breadth * np.cos(a)], 1)
    )


def _add_palm(
    builder: _Builder, fingers: dict[str, Chain]
) -> tuple[list[int], dict[str, list[int]]]:
    """Returns the loop around the opening, and the loops that the fingers grow from."""
    total, count = np.zeros((_CORNERS, 3)), np.zeros((_CORNERS, 1))
    for name, octagon in _OCTAGONS.items():
        total[list(octagon)] += fingers[name].ring(_FINGER_RINGS[name][0], _angles(8))
        count[list(octagon)] += 1
    ends = total / count

    near, far = _HOLE
    loops = [builder.add(_wrist(_WRIST_COLUMNS))]
    for ring in range(1, _RINGS + 1):
        share = ring / (_RINGS + 1)
        points = (1 - share) * _wrist(_COLUMNS) + share * ends[:_COLUMNS]
        if near < ring < far:
            loop = builder.add(np.delete(points, _HOLE_COLUMN, axis=0))
            loop.insert(_HOLE_COLUMN, -1)  # a place holder, in no polygon
        else:
            loop = builder.add(points)
        loops.append(loop)
    corners = builder.add(ends)
    loops.append(corners[:_COLUMNS])
    left, right = _HOLE_COLUMN - 1, (_HOLE_COLUMN + 1) % _COLUMNS
    for i, (a, b) in enumerate(zip(loops, loops[1:], strict=False)):
        builder.bridge(a, b, skip=(left, _HOLE_COLUMN) if near <= i < far else ())

    begins = {name: [corners[i] for i in octagon] for name, octagon in _OCTAGONS.items()}
    begins["thumb"] = [
        loops[near][_HOLE_COLUMN],
        *(loops[i][right] for i in range(near, far + 1)),
        loops[far][_HOLE_COLUMN],
        *(loops[i][left] for i in range(far, near - 1, -1)),
    ]
    return loops[0], begins


def _add_finger(
    builder: _Builder, chain: Chain, places: tuple[float, ...], begin: list[int]
) -> tuple[list[list[int]], int]:
    """Returns the loops beyond `begin`, and the tip."""
    loops = [begin]
    for place in places[1:]:
        points = chain.ring(place, _angles(_FINGER_COLUMNS))
        loop = builder.add(points.mean(0) + _OCTAGON * (points - points.mean(0)))
        builder.bridge(builder.turned(loops[-1], points), loop)
        loops.append(loop)
    (tip,) = builder.add(chain.ring(3, _angles(1)))
    last = loops[-1]
    builder.polygons += [[a, b, tip] for a, b in zip(last, last[1:] + last[:1], strict=True)]
    return loops[1:], tip


def _triangles(points: np.ndarray, polygons: list[list[int]]) -> np.ndarray:
    """(F, 3): quads are cut along the shorter diagonal, and from their first corner if it is a tie."""
    faces = []
    for polygon in polygons:
        if len(polygon) == 3:
            faces.append(polygon)
            continue
        a, b, c, d = polygon
        one, other = np.linalg.norm(points[[a, b]] - points[[c, d]], axis=1)
        faces += [[a, b, c], [a, c, d]] if one < 1.001 * other else [[a, b, d], [b, c, d]]
    return np.array(faces)


def _order_with_tips(count: int, tips: list[int]) -> np.ndarray:
    """(count,): which vertex comes where, so that `tips` land on FreiHAND's ids."""
    others = iter(sorted(set(range(count)) - set(tips)))
    placed = dict(zip(FINGERTIP_VERTICES, tips, strict=True))
    return np.array([placed[i] if i in placed else next(others) for i in range(count)])
