"""Photographs of the synthetic hand: poses and shapes as people's hands take them, a camera, light."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..hand.freihand import IMAGE_SIZE as SIZE
from ..hand.mano.layer import ManoLayer, pose_to_rotations
from ..hand.mano.surface import pose_from_angles
from ..hand.mano.synthetic import synthetic_hand, wrist_opening
from ..hand.mano.topology import NUM_BETAS, NUM_FACES, ROOT, SCALE_BONE
from ..hand.render import Fragments, rasterize, shade, unit, vertex_normals
from .skin import Skin, render_backdrop, render_green_screen, sample_arm

# (15, 3, 2) in radians: joints in MANO's order; flexion, abduction and twist; from, to.
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
        (0.25, 0.06, 0.06, 0.06, 0.06, 0.15, 0.10, 0.08),  # open
        (0.23, 0.30, 0.34, 0.40, 0.38, 0.40, 0.25, 0.12),  # relaxed
        (0.03, 0.90, 0.92, 0.92, 0.92, 0.75, 0.70, 0.08),  # fist
        (0.01, 0.92, 0.93, 0.93, 0.93, 0.00, 0.05, 0.06),  # thumb up
        (0.05, 0.06, 0.85, 0.88, 0.88, 0.70, 0.60, 0.10),  # pointing
        (0.06, 0.06, 0.06, 0.88, 0.85, 0.80, 0.60, 0.08),  # two fingers
        (0.12, 0.52, 0.45, 0.30, 0.38, 0.75, 0.35, 0.10),  # pinch
        (0.13, 0.55, 0.58, 0.60, 0.60, 0.70, 0.30, 0.10),  # around a bottle
        (0.12, 0.40, 0.39, 0.38, 0.39, 0.45, 0.40, 0.40),  # anything
    ]
)
_OPEN, _FIST = _GRASPS[0], _GRASPS[2]
# How much less the first joints of closed fingers bend, and how much more the middle ones: else the
# fingertips would go through the palm.
_ROLLED = 0.12


def sample_pose(
    rng: np.random.Generator, count: int, *, poses: str = "all", views: float = 180
) -> np.ndarray:
    """Sample poses within the limits above, in which the fingers hardly pass through one another.

    Args:
        rng: where the randomness comes from.
        count: number of poses n.
        poses: ``all`` that there are, or ``closing``: between open and a fist, all fingers alike.
        views: greatest turn, in degrees, from a palm that faces the camera, fingers up.

    Returns:
        (n, 48), axis-angle in radians as FreiHAND stores them: the turn of the whole hand from MANO's
        frame into the camera's, and the 15 joints relative to the model's `pose_mean`.
    """
    fingers = pose_from_angles(_sample_angles(rng, count, poses)) - synthetic_hand().pose_mean
    return np.concatenate([_sample_orientations(rng, count, views), fingers], axis=1)


def sample_betas(rng: np.random.Generator, count: int) -> np.ndarray:
    """Sample shapes, (n, 10): standard normal, cut off at 2.5."""
    return np.clip(rng.standard_normal((count, NUM_BETAS)), -2.5, 2.5)


def _sample_angles(rng: np.random.Generator, count: int, poses: str) -> np.ndarray:
    """(n, 15, 3), radians: flexion, abduction, twist of each joint, within `LIMITS`."""
    if poses == "closing":
        closing = rng.beta(0.6, 1.03, (count, 1))  # often near both ends, and rather open
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
    shift -= _ROLLED * closed.clip(0, 1) ** 4
    base, middle = (closed + shift).clip(0, 1), (closed - shift).clip(0, 1)

    angles = np.zeros((count, 15, 3))
    fingers = angles[:, :12].reshape(count, 4, 3, 3)  # a view: finger, joint, angle
    low, high = LIMITS[:12].reshape(4, 3, 3, 2)[:, :2, 0].transpose(2, 0, 1)  # (4, 2) each
    share = np.stack([0.08 + 0.92 * base, 0.02 + 0.98 * middle], 2)  # (n, 4, 2)
    fingers[:, :, :2, 0] = low + (high - low) * share
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


# From MANO's frame (fingers -x, back +y, thumb +z) to a palm before the camera: fingers up, which is -y.
_FRONT = Rotation.from_matrix([[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def _sample_orientations(rng: np.random.Generator, count: int, views: float) -> np.ndarray:
    """(n, 3), axis-angle: any, but rather with the fingers up than down, and seldom along the arm."""
    vectors = np.empty((count, 3))
    missing = np.arange(count)
    while len(missing):
        turns = Rotation.random(len(missing), rng=rng)
        if views < 180:
            far = np.radians(views) * rng.random((len(missing), 1)) ** (1 / 3)
            turns = Rotation.from_rotvec(far * unit(turns.as_rotvec())) * _FRONT
        _, down, away = turns.apply([-1, 0, 0]).T  # where the fingers point
        # Seen along the arm, it hides the hand.
        likely = (0.6 - 0.4 * down) * np.clip(
            (0.92 - np.where(away > 0, away, 0.85 * -away)) / 0.4, 0, 1
        )
        accepted = rng.random(len(missing)) < likely
        vectors[missing[accepted]] = turns[accepted].as_rotvec()
        missing = missing[~accepted]
    return vectors


_FINER = 2  # subpixels along a pixel
_TO_BACKDROP = 0.25  # metres from the hand to the backdrop


@dataclass(frozen=True)
class Annotation:
    """What FreiHAND stores of a hand. Camera frame, metres, pixels.

    Args:
        K: (3, 3), intrinsics.
        vertices: (778, 3).
        keypoints: (21, 3).
        mano: (61,): pose 48, betas 10, the root's pixel 2, and focal length over the root's depth,
            in pixels a metre.
        scale: metres, the length of the bone between keypoints 9 and 10.
    """

    K: np.ndarray
    vertices: np.ndarray
    keypoints: np.ndarray
    mano: np.ndarray
    scale: float


@functools.cache
def _layer() -> ManoLayer:
    return ManoLayer(synthetic_hand(), dtype=torch.float64)


def sample_annotation(
    rng: np.random.Generator, *, poses: str = "all", views: float = 180
) -> Annotation:
    """Sample a pose, a shape, and a camera that sees the hand in the middle of the picture.

    Focal lengths are 450 to 600 pixels, the root is 0.5 to 0.8 m away and at most 20 pixels from the
    middle. Most hands lie within the central 180 pixels. `poses` and `views`: as of :func:`sample_pose`.
    """
    pose, betas = sample_pose(rng, 1, poses=poses, views=views), sample_betas(rng, 1)
    rotations = pose_to_rotations(torch.from_numpy(pose), synthetic_hand().pose_mean)
    posed = _layer()(rotations, torch.from_numpy(betas))
    root = posed.keypoints[0, ROOT]
    vertices, keypoints = (posed.vertices[0] - root).numpy(), (posed.keypoints[0] - root).numpy()

    depth = rng.uniform(0.5, 0.8)
    reach = np.linalg.norm(vertices[:, :2], axis=1).max()
    focal = np.clip(rng.uniform(66, 92) * depth / reach, 450, 600)
    fx, fy = focal * (1 + 0.001 * rng.standard_normal(2).clip(-2, 2))
    cx, cy = SIZE / 2 + 3 * rng.standard_normal(2)
    u, v = SIZE / 2 + (7 * rng.standard_normal(2)).clip(-20, 20)
    place = depth * np.array([(u - cx) / fx, (v - cy) / fy, 1])
    bone = keypoints[SCALE_BONE[1]] - keypoints[SCALE_BONE[0]]
    return Annotation(
        K=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        vertices=vertices + place,
        keypoints=keypoints + place,
        mano=np.concatenate([pose[0], betas[0], [u, v, (fx + fy) / 2 / depth]]),
        scale=float(np.linalg.norm(bone)),
    )


class Scene:
    """A hand with its arm, seen by a camera, ready to be lit.

    Args:
        rng: where arm and skin come from.
        annotation: the hand and its camera.

    Attributes:
        mask: (S, S) bool, the pixels that show the hand, without its arm.
    """

    mask: np.ndarray

    def __init__(self, rng: np.random.Generator, annotation: Annotation) -> None:
        hand, opening = synthetic_hand(), wrist_opening()
        turn = Rotation.from_rotvec(annotation.mano[:3])
        arm = sample_arm(rng, annotation.vertices[opening], hand.template[opening], turn)
        vertices = np.concatenate([annotation.vertices, arm.vertices])
        # The arm's first ring is the opening itself: no seam is seen.
        number = np.append(opening, len(hand.template) + np.arange(16, len(arm.vertices)))
        faces = np.concatenate([hand.faces, number[arm.faces]])

        fragments = _look(vertices, faces, annotation.K)
        covered = fragments.face >= 0  # (2 S, 2 S)
        face = fragments.face[covered]
        rest_normals = vertex_normals(hand.template, hand.faces)
        rest = np.concatenate([hand.template, arm.rest])
        rest_normals = np.concatenate(
            [rest_normals, np.resize(rest_normals[opening], arm.rest.shape)]
        )
        at = np.hstack([vertex_normals(vertices, faces), rest, rest_normals])
        self._normals, rest, rest_normals = np.split(fragments.interpolate(at, faces), 3, axis=1)
        self._normals = unit(self._normals)  # (n, 3) float32
        albedo, self._gloss = Skin(rng).colours(rest, unit(rest_normals))
        sleeve = np.concatenate([np.zeros(NUM_FACES, bool), arm.is_sleeve])[face]
        albedo[sleeve] = _cloth(rng, rest[sleeve])
        self._albedo = albedo**2
        self._covered = covered
        self._alpha = _average(covered.astype(np.float32))[..., None]  # (S, S, 1)
        hand_only = covered.copy()
        hand_only[covered] = face < NUM_FACES
        self.mask = _average(hand_only.astype(np.float32)) >= 0.5
        self._shadow = _shadow(fragments)

    def photograph(self, rng: np.random.Generator, version: str) -> np.ndarray:
        """Light the scene, add a backdrop and take a picture.

        Args:
            rng: where light, background and noise come from.
            version: one of FreiHAND's: gs is in front of a green screen, the others are not.

        Returns:
            (S, S, 3) uint8, BGR.
        """
        green = version == "gs"
        to_light = unit(rng.normal((0, -0.7, -0.8), (0.7, 0.5, 0.4)))
        if to_light[2] > 0.3:
            to_light[2] *= -1
        warmth = rng.normal(0, 0.02 if green else 0.05)
        tint = np.array((1 + warmth, 1, 1 - warmth), np.float32)
        around = np.array((0.95, 1.06, 0.95), np.float32) if green else tint[::-1]
        sky = 1 - 0.25 * self._normals[:, 1:2]  # (n, 1); y is down
        lit = shade(
            self._normals,
            self._albedo,
            to_light=to_light,
            diffuse=float(rng.uniform(0.55, 1.0)) * tint,
            ambient=float(rng.uniform(0.18, 0.45)) * around * sky,
            specular=float(rng.uniform(0.01, 0.05)) + 0.12 * self._gloss,
            shininess=float(rng.uniform(10, 30)),
        )
        picture = np.zeros((*self._covered.shape, 3), np.float32)
        picture[self._covered] = np.sqrt(np.minimum(lit, 1))
        picture = _average(picture) * self._shadow
        if not green:
            picture = _grade(rng, picture, self._alpha)
        backdrop = (render_green_screen if green else render_backdrop)(rng, SIZE)
        picture += (1 - self._alpha) * backdrop
        return _expose(rng, picture)


def _look(vertices: np.ndarray, faces: np.ndarray, K: np.ndarray) -> Fragments:
    """The scene at the subpixels, (2 S, 2 S); its depth is -1 / z, which is linear in the picture."""
    x, y, z = (vertices @ K.T).T
    # The centre of pixel 0 is between those of subpixels 0 and 1.
    pixels = np.stack([x / z, y / z], 1) * _FINER + (_FINER - 1) / 2
    points = np.column_stack([pixels, -1 / z])
    return rasterize(points, faces, (_FINER * SIZE, _FINER * SIZE), cull=True)


def _average(fine: np.ndarray) -> np.ndarray:
    """(2 S, 2 S, ...) -> (S, S, ...)."""
    return cv2.resize(fine, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _shadow(fragments: Fragments) -> np.ndarray:
    """(S, S, 1): how much less light comes to what is farther than its surroundings.

    After Luft, Colditz and Deussen (2006), "Image enhancement by unsharp masking the depth buffer".
    """
    depth = fragments.depth
    z = np.where(np.isfinite(depth), -1 / np.minimum(depth, -1e-3), 0).astype(np.float32)
    z[z == 0] = z.max(initial=0) + _TO_BACKDROP
    z = _average(z)
    farther = z - cv2.GaussianBlur(z, (0, 0), 4)
    return (1 - np.clip(farther / 0.03, 0, 0.45))[..., None].astype(np.float32)


def _cloth(rng: np.random.Generator, rest: np.ndarray) -> np.ndarray:
    """(n, 3): a knitted sleeve, from where its points are on the resting arm."""
    hue, saturation, value = rng.uniform((0, 0.05, 0.08), (180, 0.7, 0.85))
    hsv = np.array([[[2 * hue, saturation, value]]], np.float32)
    colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    ribs = np.sin(rest[:, :1] * (2 * np.pi / rng.uniform(4e-3, 30e-3)))
    weave = rng.standard_normal((len(rest), 1))
    return np.clip(colour * (1 + rng.uniform(0, 0.15) * ribs + 0.03 * weave), 0.02, 1)


def _grade(rng: np.random.Generator, picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Change saturation, contrast and white balance of a picture that is times alpha (S, S, 1)."""
    saturation, contrast = rng.uniform((0.75, 0.85), (1.15, 1.15))
    mix = saturation * np.eye(3) + (1 - saturation) / 3
    mix = np.column_stack([contrast * mix, np.full(3, 0.4 * (1 - contrast))])  # (3, 4)
    mix *= rng.normal(1, 0.03, (3, 1))
    graded = cv2.transform(np.dstack([picture, alpha]), mix.astype(np.float32))
    return np.clip(graded, 0, alpha)


def _expose(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A picture (S, S, 3) with the blur and the noise of a sensor, as 8 bit BGR."""
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.7))
    noise = float(rng.uniform(0.004, 0.02)) * rng.standard_normal(picture.shape, np.float32)
    exposed = cv2.convertScaleAbs(np.maximum(picture + noise, 0), alpha=255)  # cut off at 255
    return cv2.cvtColor(exposed, cv2.COLOR_RGB2BGR)
