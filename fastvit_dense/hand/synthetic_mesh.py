"""The surface of the synthetic hand: 778 vertices and 1538 faces, as MANO's.

The palm is a tube of rings of 20 vertices that opens to the wrist with a ring of 16. Its far end is the
outline of four octagons in a row, from which the fingers grow; neighbours share the two edges of the
web between them. The thumb grows from a hole in the side of the tube. So every edge is in two faces,
or in one at the wrist. What lies near the palm is then drawn onto the flesh and spread out evenly.

    16 + 10 * 20 - 2   palm, less what is missing in the hole
    + 20 + 3           its far end, and the middles of the webs
    + 67 * 8 + 5       fingers and their tips
    = 778

Any disc of 778 vertices whose border has 16 edges has 1538 faces.

Legend for shapes: V vertices, n vertices of a loop.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .synthetic_anatomy import Chain, chains, to_metres
from .synthetic_flesh import Flesh
from .topology import FINGERS, FINGERTIP_VERTICES

_COLUMNS, _WRIST_COLUMNS, _FINGER_COLUMNS = 20, 16, 8  # vertices around palm, wrist and finger
_RINGS = 10  # of the palm, between both ends
_WRIST_END = (-18, 17, 28)  # mm: how far distal the opening is, half its thickness and breadth
# The hole for the thumb: the rings of the palm at both ends of it, and the column in its middle. It is
# first pulled to this place of the thumb, in this many steps.
_HOLE, _HOLE_COLUMN = (3, 6), 19
_HOLE_PLACE, _PULLING = 0.3, 80


class _Rings(NamedTuple):
    """The rings of a finger. Places are as in `Chain.ring`."""

    start: float  # place where it leaves the palm
    to_second: int  # rings from there to the second joint,
    to_third: int  # and from there to the third joint
    beyond: tuple[float, ...]  # places of the others
    in_flesh: int  # how many of the first ones are drawn onto the flesh


_FINGERTIP = (2.28, 2.52, 2.72, 2.87, 2.96)
_FINGER_RINGS = {
    "index": _Rings(0.50, 4, 4, _FINGERTIP, 2),
    "middle": _Rings(0.46, 5, 4, _FINGERTIP, 2),
    "little": _Rings(0.70, 3, 4, _FINGERTIP, 2),
    "ring": _Rings(0.48, 4, 4, _FINGERTIP, 2),
    "thumb": _Rings(0.70, 3, 6, (2.2, 2.4, 2.58, 2.74, 2.87, 2.96), 4),
}
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
        free += sum(rings[name][: _FINGER_RINGS[name].in_flesh], [])

    neighbours = builder.neighbour_mean()
    root = fingers["thumb"].ring(_HOLE_PLACE, _angles(len(begins["thumb"])))
    points = _pull(
        np.array(builder.points),
        hole=builder.turned(begins["thumb"], root),
        place=root,
        among=np.arange(_WRIST_COLUMNS, begins["index"][0]),
        neighbours=neighbours,
    )
    points = Flesh(fingers).settle(points, np.array(free), neighbours)

    order = _order_with_tips(len(points), [tips[name] for name in FINGERS])
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
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
            lead = (i + 1) * m - (j + 1) * n  # the loop that is behind takes the next step
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
        total[list(octagon)] += fingers[name].ring(_FINGER_RINGS[name].start, _angles(8))
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
    builder: _Builder, chain: Chain, rings: _Rings, begin: list[int]
) -> tuple[list[list[int]], int]:
    """Returns the loops beyond `begin`, and the tip."""
    places = (
        *np.linspace(rings.start, 1, rings.to_second + 1)[1:],
        *np.linspace(1, 2, rings.to_third + 1)[1:],
        *rings.beyond,
    )
    loops = [begin]
    for place in places:
        points = chain.ring(place, _angles(_FINGER_COLUMNS))
        loop = builder.add(points.mean(0) + _OCTAGON * (points - points.mean(0)))
        builder.bridge(builder.turned(loops[-1], points), loop)
        loops.append(loop)
    (tip,) = builder.add(chain.ring(3, _angles(1)))
    last = loops[-1]
    builder.polygons += [[a, b, tip] for a, b in zip(last, last[1:] + last[:1], strict=True)]
    return loops[1:], tip


def _pull(
    points: np.ndarray,
    *,
    hole: list[int],
    place: np.ndarray,
    among: np.ndarray,
    neighbours: np.ndarray,
) -> np.ndarray:
    """Move the loop `hole` to `place` (n, 3); the vertices `among` follow, the nearer the more."""
    shift = np.zeros_like(points)
    for _ in range(_PULLING):
        shift[among] = (neighbours @ shift)[among]
        shift[hole] = place - points[hole]
    return points + shift


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
