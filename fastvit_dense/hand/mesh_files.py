"""Mesh files of hands, for Blender, MeshLab and other viewers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import trimesh

# What makes trimesh write normals of vertices: without them, viewers show facets.
_WITH_NORMALS: dict[str, dict[str, Any]] = {
    "obj": dict(include_normals=True),
    "ply": dict(vertex_normal=True),
    "glb": dict(include_normals=True),
}
FORMATS = tuple(_WITH_NORMALS)
# The camera frame has y down and z forward; viewers have y up and look along -z. Half a turn about x.
TO_VIEWER = np.array([1.0, -1.0, -1.0])


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write a mesh in metres, y up: the camera's (x, y, z) becomes (x, -y, -z).

    That is a rotation, so that normals keep pointing outwards. What was seen by the camera faces a viewer
    that looks along -z, as viewers do; vertices before the camera are seen from the origin as in the image.
    Each vertex has its normal; their order is kept. The file appears when it is complete.

    Args:
        path: of the file; its suffix, one of ``FORMATS``, is the format.
        vertices: (V, 3) metres, camera frame (x right, y down, z forward).
        faces: (F, 3) vertices of each triangle, counterclockwise seen from outside.

    Raises:
        ValueError: the suffix is no known format.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: expected a mesh file ending in .{', .'.join(FORMATS)}")
    # Without processing: it would merge and reorder vertices.
    mesh = trimesh.Trimesh(vertices * TO_VIEWER, faces, process=False)
    content: Any = mesh.export(file_type=kind, **_WITH_NORMALS[kind])  # text or bytes
    write_atomically(path, content.encode() if isinstance(content, str) else content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that gets its name when it is complete.

    Args:
        path: of the file; its folder exists.
        content: all of it.
    """
    aside = path.with_name(f"{path.name}.unfinished")
    aside.write_bytes(content)
    aside.replace(path)
