"""Photographs of the synthetic hand: a camera, an arm, light, skin and something behind.

Colours are sRGB in [0, 1] here, and light is added up in their squares, which is near enough to linear.

Legend for shapes: S = 224 pixels, the side of a picture; n covered subpixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from .annotations import IMAGE_SIZE as SIZE
from .mano import ManoLayer, pose_to_rotations
from .render import Fragments, rasterize, shade, unit, vertex_normals
from .synthetic import synthetic_hand, wrist_opening
from .synthetic_arm import draw_arm
from .synthetic_backdrop import draw_backdrop, draw_green_screen
from .synthetic_pose import sample_betas, sample_pose
from .synthetic_skin import Skin
from .topology import NUM_FACES, ROOT, SCALE_BONE

_FINER = 2  # subpixels along a pixel
_BEHIND = 0.25  # metres from the hand to what is behind it


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
    """Draw a pose, a shape, and a camera that sees the hand in the middle of the picture.

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
        arm = draw_arm(rng, annotation.vertices[opening], hand.template[opening], turn)
        vertices = np.concatenate([annotation.vertices, arm.vertices])
        # The arm's first ring is the opening itself: no seam is seen.
        number = np.arange(len(arm.vertices)) + len(hand.template)
        number[: len(opening)] = opening
        faces = np.concatenate([hand.faces, number[arm.faces]])

        fragments = _look(vertices, faces, annotation.K)
        covered = fragments.face >= 0  # (2 S, 2 S)
        face = fragments.face[covered]
        rest_normals = vertex_normals(hand.template, hand.faces)
        rest = np.concatenate([hand.template, arm.rest])
        rest_normals = np.concatenate([rest_normals, rest_normals[opening][arm.wrist]])
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
        """Light the scene, put something behind it and take a picture.

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
        backdrop = (draw_green_screen if green else draw_backdrop)(rng, SIZE)
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
    """(S, S, 1): how much less light comes to what lies behind its surroundings.

    After Luft, Colditz and Deussen (2006), "Image enhancement by unsharp masking the depth buffer".
    """
    depth = fragments.depth
    z = np.where(np.isfinite(depth), -1 / np.minimum(depth, -1e-3), 0).astype(np.float32)
    z[z == 0] = z.max(initial=0) + _BEHIND
    z = _average(z)
    behind = z - cv2.GaussianBlur(z, (0, 0), 4)
    return (1 - np.clip(behind / 0.03, 0, 0.45))[..., None].astype(np.float32)


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
