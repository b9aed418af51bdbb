"""MANO's arrays in memory, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .topology import (
    FINGERTIP_VERTICES,
    KEYPOINT_ORDER,
    NUM_BETAS,
    NUM_FACES,
    NUM_ROTATIONS,
    NUM_VERTICES,
)

_NUM_ANGLES = 3 * (NUM_ROTATIONS - 1)
_SHAPES = {
    "template": (NUM_VERTICES, 3),
    "faces": (NUM_FACES, 3),
    "shape_directions": (NUM_VERTICES, 3, NUM_BETAS),
    "pose_directions": (NUM_VERTICES, 3, 9 * (NUM_ROTATIONS - 1)),
    "joint_regressor": (NUM_ROTATIONS, NUM_VERTICES),
    "skinning_weights": (NUM_VERTICES, NUM_ROTATIONS),
    "pose_components": (_NUM_ANGLES, _NUM_ANGLES),
    "pose_mean": (_NUM_ANGLES,),
}
HOW_TO_GET_MANO = (
    'MANO may not be passed on: register at https://mano.is.tue.mpg.de, download "Models & Code", and '
    "convert models/MANO_RIGHT.pkl of it by `python tools/convert_mano.py MANO_RIGHT.pkl "
    'data/mano/MANO_RIGHT.npz`. To try everything without it, use mano="synthetic", a procedural '
    "hand of the same shapes"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mano:
    """A hand model: MANO itself, or another with its shapes.

    The arrays are checked, copied and made read-only. All are float64 but `faces`.

    Args:
        template: (778, 3), metres: the vertices with betas 0 and no rotation.
        faces: (1538, 3) int64, indices of vertices, counterclockwise seen from outside.
        shape_directions: (778, 3, 10), metres a unit of beta.
        pose_directions: (778, 3, 135), metres: what the entries of the 15 rotation matrices of the
            fingers, less those of the identity, row by row, add to the template.
        joint_regressor: (16, 778): joints from vertices. Of vertices without rotation they are those that
            the skeleton turns at. Rows add up to 1.
        skinning_weights: (778, 16), how much of each joint's motion a vertex follows. Rows add up to 1.
        pose_components: (45, 45): rows are MANO's principal components of finger poses, in radians.
        pose_mean: (45,): mean pose of the fingers, axis-angle in radians, which stored poses are
            relative to.

    Raises:
        ValueError: an array has another shape, holds other than finite numbers, or indices and weights
            out of their range.
    """

    template: np.ndarray
    faces: np.ndarray
    shape_directions: np.ndarray
    pose_directions: np.ndarray
    joint_regressor: np.ndarray
    skinning_weights: np.ndarray
    pose_components: np.ndarray
    pose_mean: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            array = _checked(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, array)
        if self.faces.min() < 0 or self.faces.max() >= NUM_VERTICES:
            raise ValueError(
                f"faces must be indices from 0 to {NUM_VERTICES - 1}, got some from {self.faces.min()} "
                f"to {self.faces.max()}"
            )
        for name in ("joint_regressor", "skinning_weights"):
            sums = getattr(self, name).sum(1)
            # A wide margin: this tells arrays of another kind, and not rounding.
            if np.abs(sums - 1).max() > 0.05:
                raise ValueError(
                    f"the rows of {name} must add up to 1, got sums from {sums.min():.3g} to "
                    f"{sums.max():.3g}"
                )

    @property
    def keypoint_regressor(self) -> np.ndarray:
        """(21, 778): FreiHAND's keypoints from posed vertices, in FreiHAND's order.

        NOTE: they are not the joints that the skeleton carries along. FreiHAND's toolbox (utils/model.py,
        `HandModel._calc_coords`) regresses them from the mesh as it is posed,
        ``Jtr_x = ch.MatVecMult(J_regressor, V[:, 0])`` and so on, and takes five vertices for the
        fingertips. METRO (metro/modeling/_mano.py, `MANO.get_3d_joints`) does the same with its
        predictions. (The toolbox's first version took the skeleton's; smplx and manopth return those.)
        """
        tips = np.eye(NUM_VERTICES)[list(FINGERTIP_VERTICES)]
        return np.concatenate([self.joint_regressor, tips])[list(KEYPOINT_ORDER)]


def _checked(name: str, value: object) -> np.ndarray:
    array = np.asarray(value)
    kinds, numbers = ("iu", "integers") if name == "faces" else ("fiu", "real numbers")
    if array.shape != _SHAPES[name] or array.dtype.kind not in kinds:
        raise ValueError(
            f"{name} must be {numbers} of shape {_SHAPES[name]}, got {array.dtype} of {array.shape}"
        )
    array = array.astype(np.int64 if name == "faces" else np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    array.flags.writeable = False
    return array


def is_right_hand(mano: Mano) -> bool:
    """Tell a right hand from a left one, by its shape without rotation.

    Looking onto its palm, fingers up, a right hand has the index finger on the right of the little one. So
    for a right hand ``(index base - little base) x (middle base - wrist)`` points out of the palm. Two
    things tell where the palm is, and neither depends on the frame or the size of the hand: the thumb
    lies on that side of the plane of wrist and bases, and the mean pose bends the fingers to it. In
    MANO's right hand both hold with a margin: the thumb's joints are 17 to 24 mm in front of the plane,
    and its mean pose moves every finger that way. Mirrored arrays give the opposite sign.

    It relies on the order of MANO's joints, on a template with an open hand, and on the joint regressor.

    Args:
        mano: the model.

    Returns:
        Whether it is a right hand.
    """
    joints = mano.joint_regressor @ mano.template  # (16, 3)
    wrist, index, middle, little, thumb_end = joints[[0, 1, 4, 7, 15]]
    out_of_palm = np.cross(index - little, middle - wrist)
    inner = np.array([j for base in (1, 4, 7, 10) for j in (base, base + 1)])  # of the four fingers
    # How the far end of a bone moves when the joint at its near end begins to turn as in the mean pose.
    turns = mano.pose_mean.reshape(-1, 3)[inner - 1]
    bending = np.cross(turns, joints[inner + 1] - joints[inner]).sum(0)
    return bool((thumb_end - wrist + bending) @ out_of_palm > 0)


def _check_handedness(mano: Mano) -> None:
    if not is_right_hand(mano):
        raise ValueError(
            "it is a left hand, such as MANO_LEFT. Expected the right one: left hands are done by "
            "mirroring the picture"
        )
