"""The synthetic hand is a surface, shaped and jointed as a right hand is."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import follow_chain

from fastvit_dense.hand.mano.arrays import Mano
from fastvit_dense.hand.mano.layer import ManoLayer, pose_to_rotations
from fastvit_dense.hand.mano.surface import pose_from_angles
from fastvit_dense.hand.mano.synthetic import synthetic_hand, wrist_opening
from fastvit_dense.hand.mano.topology import FINGERS, FINGERTIP_VERTICES
from fastvit_dense.hand.render import vertex_normals
from fastvit_dense.synthetic.hands import sample_betas, sample_pose

FINGERTIPS = dict(zip(FINGERS, FINGERTIP_VERTICES, strict=True))
JOINTS = {"index": 1, "middle": 4, "little": 7, "ring": 10, "thumb": 13}  # the first of each
BONES = {"index": (42, 25), "middle": (46, 29), "little": (33.5, 20), "ring": (42.5, 27.5)}  # mm


@pytest.fixture(scope="module")
def hand() -> Mano:
    return synthetic_hand()


@pytest.fixture(scope="module")
def layer(hand: Mano) -> ManoLayer:
    return ManoLayer(hand, dtype=torch.float64)


def posed(layer: ManoLayer, pose: np.ndarray, betas: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(n, 778 + 21, 3): vertices; joints of the skeleton and fingertips, in the keypoints' order."""
    rotations = pose_to_rotations(torch.tensor(pose), mean)
    vertices = layer(rotations, torch.tensor(betas)).vertices.numpy()
    hand = synthetic_hand()
    shaped = hand.template + np.einsum("vck,nk->nvc", hand.shape_directions, betas)
    joints = follow_chain(hand.joint_regressor @ shaped, rotations.numpy())
    return np.concatenate(
        [vertices, joints[:, :1]]
        + [
            part
            for finger, tip in FINGERTIPS.items()
            for part in (joints[:, JOINTS[finger] :][:, :3], vertices[:, [tip]])
        ],
        axis=1,
    )


def bent(layer: ManoLayer, degrees: dict[int, tuple[float, float, float]]) -> np.ndarray:
    """(778 + 21, 3) of a flat hand with some joints bent by (flexion, abduction, twist)."""
    angles = np.zeros((1, 15, 3))
    for joint, angle in degrees.items():
        angles[0, joint - 1] = np.radians(angle)
    pose = np.concatenate([np.zeros((1, 3)), pose_from_angles(angles)], 1)
    return posed(layer, pose, np.zeros((1, 10)), np.zeros(45))[0]


def angles_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between unit vectors (..., 3)."""
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def winding_numbers(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """How often the surface, with a lid on the wrist, goes around each point: 1 inside, 0 outside.

    A sum of solid angles (van Oosterom and Strackee 1983).
    """
    ring = wrist_opening()
    lid = np.stack([np.roll(ring, -1), ring, np.full(16, len(vertices))], 1)
    vertices = np.vstack([vertices, vertices[ring].mean(0)])
    corners = vertices[np.vstack([faces, lid])]
    numbers = []
    for point in points:
        a, b, c = (corners - point).transpose(1, 0, 2)
        la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
        volume = (a * np.cross(b, c)).sum(1)
        below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        numbers.append(np.arctan2(volume, below).sum() / (2 * np.pi))
    return np.array(numbers)


def test_a_disc_with_16_edges_around_the_wrist(hand: Mano) -> None:
    assert hand.template.shape == (778, 3) and hand.faces.shape == (1538, 3)
    assert np.array_equal(np.unique(hand.faces), np.arange(778))
    directed = Counter((int(f[i]), int(f[i - 2])) for f in hand.faces for i in range(3))
    assert max(directed.values()) == 1  # so no edge has two faces of the same winding, or three
    border = [edge for edge in directed if edge[::-1] not in directed]
    edges = (len(directed) + len(border)) // 2
    assert len(border) == 16 and 778 - edges + 1538 == 1
    follow = dict(border)
    start = vertex = border[0][0]
    for step in range(1, 17):  # one loop, at the wrist
        vertex = follow[vertex]
        assert (vertex == start) == (step == 16)
    assert set(follow) == set(wrist_opening())
    assert np.allclose(hand.template[list(follow), 0], hand.template[:, 0].max(), atol=1e-4)


def test_each_vertex_has_one_fan_of_faces(hand: Mano) -> None:
    for vertex in range(778):
        around = hand.faces[(hand.faces == vertex).any(1)]
        links = {
            int(f[(i + 1) % 3]): int(f[(i + 2) % 3])
            for f in around
            for i in range(3)
            if f[i] == vertex
        }
        starts = set(links) - set(links.values()) or {next(iter(links))}
        at, count = starts.pop(), 0
        assert not starts
        while at in links and count < len(around):
            at, count = links[at], count + 1
        assert count == len(around)


def test_wound_outwards_with_the_volume_of_a_hand(hand: Mano) -> None:
    vertices = hand.template - hand.template[wrist_opening()].mean(0)  # the lid adds nothing
    volume = np.linalg.det(vertices[hand.faces]).sum() / 6
    assert 250e-6 < volume < 450e-6  # cubic metres


def test_does_not_cut_through_itself(hand: Mano) -> None:
    normals = vertex_normals(hand.template, hand.faces)
    away = hand.template[:, 0] < hand.template[:, 0].max() - 1e-3  # from the lid
    for distance, wanted, share in ((1e-3, 0, 0.98), (-1e-3, 1, 0.99)):
        points = (hand.template + distance * normals)[away]
        found = winding_numbers(points, hand.template, hand.faces)
        assert np.allclose(found, np.rint(found), atol=1e-6) and set(np.rint(found)) <= {0, 1}
        assert (np.rint(found) == wanted).mean() > share


def test_faces_are_well_shaped(hand: Mano) -> None:
    a, b, c = hand.template[hand.faces].transpose(1, 0, 2)
    sides = np.stack([np.linalg.norm(x, axis=1) for x in (b - a, c - b, a - c)])
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    quality = 4 * np.sqrt(3) * area / (sides**2).sum(0)  # 1 for equal sides
    assert sides.max() < 21e-3 and quality.min() > 0.08 and np.median(quality) > 0.8
    # Short of the webs, the surface bends gently from face to face.
    normals = np.cross(b - a, c - a) / (2 * area[:, None])
    faces_of = {}
    for number, face in enumerate(hand.faces):
        for i in range(3):
            faces_of.setdefault(frozenset((int(face[i]), int(face[i - 1]))), []).append(number)
    pairs = np.array([two for two in faces_of.values() if len(two) == 2])
    degrees = angles_between(normals[pairs[:, 0]], normals[pairs[:, 1]])
    assert np.median(degrees) < 15 and (degrees > 60).mean() < 0.02


def test_measures_of_a_hand(hand: Mano) -> None:
    joints = hand.joint_regressor @ hand.template
    length = np.linalg.norm(hand.template[FINGERTIPS["middle"]] - joints[0])
    assert 0.18 < length < 0.19
    palm = hand.template[np.abs(hand.template[:, 0] - joints[4, 0]) < 12e-3]
    palm = palm[palm[:, 2] < 0.045]  # without the thumb
    assert 0.078 < np.ptp(palm[:, 2]) < 0.09 and 0.022 < np.ptp(palm[:, 1]) < 0.038
    for finger, lengths in BONES.items():
        chain = joints[JOINTS[finger] : JOINTS[finger] + 3]
        assert np.linalg.norm(np.diff(chain, axis=0), axis=1) == pytest.approx(
            np.array(lengths) / 1e3, abs=1e-4
        )
    reach = {
        name: np.linalg.norm(hand.template[tip] - joints[0]) for name, tip in FINGERTIPS.items()
    }
    assert (
        reach["middle"] > reach["index"] > reach["ring"] > reach["little"] > reach["thumb"] > 0.12
    )


def test_fingertips_are_the_ends_of_the_fingers(hand: Mano) -> None:
    joints = hand.joint_regressor @ hand.template
    for finger, tip in FINGERTIPS.items():
        last = JOINTS[finger] + 2
        mine = np.flatnonzero(hand.skinning_weights[:, last] > 0.5)
        direction = joints[last] - joints[last - 1]
        assert mine[np.argmax(hand.template[mine] @ direction)] == tip
        assert len(mine) > 20


def test_a_right_hand(hand: Mano, layer: ManoLayer) -> None:
    joints = hand.joint_regressor @ hand.template
    ahead = joints[4] - joints[0]
    to_thumb = hand.template[FINGERTIPS["thumb"]] - joints[0]
    bow = bent(layer, dict.fromkeys((1, 4, 7, 10), (45, 0, 0)))
    to_palm = bow[list(FINGERTIP_VERTICES[1:])].mean(0) - hand.template[
        list(FINGERTIP_VERTICES[1:])
    ].mean(0)
    # Who looks at the right palm with the fingers up has the thumb on the right.
    assert np.linalg.det([to_thumb, ahead, to_palm]) > 0
    for direction, axis in ((ahead, (-1, 0, 0)), (to_palm, (0, -1, 0)), (to_thumb, (0, 0, 1))):
        assert direction @ axis > 0.4 * np.linalg.norm(direction)
    # Nails and knuckles are on the other side: the wrist's joint is nearer to the back.
    assert joints[4, 1] > joints[13, 1]


def test_joints_are_inside_whatever_the_shape(hand: Mano) -> None:
    regressor = hand.joint_regressor
    assert regressor.min() >= 0 and np.allclose(regressor.sum(1), 1)
    assert (regressor > 0).sum(1).max() < 100
    for betas in (np.zeros(10), *(2.5 * np.eye(10)), *(-2.5 * np.eye(10))):
        vertices = hand.template + hand.shape_directions @ betas
        inside = winding_numbers(regressor @ vertices, vertices, hand.faces)
        assert np.allclose(inside, 1, atol=1e-6)


def test_skinning_weights_are_few_and_smooth(hand: Mano) -> None:
    weights = hand.skinning_weights
    assert weights.min() >= 0 and np.allclose(weights.sum(1), 1)
    assert (weights > 0).sum(1).max() <= 7 and (weights > 0).sum(1).mean() < 3
    assert (weights.max(0) > 0.8).all()  # each joint has vertices of its own
    edges = np.concatenate([hand.faces[:, [0, 1]], hand.faces[:, [1, 2]], hand.faces[:, [2, 0]]])
    steps = np.abs(weights[edges[:, 0]] - weights[edges[:, 1]]).max(1)
    assert steps.max() < 0.5
    # A vertex follows its finger alone, or its finger and the palm.
    for finger, first in JOINTS.items():
        mine = weights[:, first + 1 : first + 3].sum(1) > 0.5
        others = [j for j in range(1, 16) if not first <= j < first + 3]
        assert weights[mine][:, others].max() < 0.05, finger


def test_shapes_move_what_they_say(hand: Mano) -> None:
    assert hand.shape_directions.shape == (778, 3, 10)
    moved = np.linalg.norm(hand.shape_directions, axis=1)  # (778, 10)
    assert (moved.mean(0) > 0.2e-3).all() and (moved.max(0) > 0.9e-3).all() and moved.max() < 11e-3
    # Size: everything by 4.5 % about the wrist, which is near the origin.
    assert np.allclose(hand.shape_directions[..., 0], 0.045 * hand.template, atol=4e-4)
    longer = hand.template + 2 * hand.shape_directions[..., 5]  # the thumb by 12 %
    joints, before = hand.joint_regressor @ longer, hand.joint_regressor @ hand.template
    bones = [np.linalg.norm(np.diff(j[13:16], axis=0), axis=1) for j in (joints, before)]
    assert bones[0] / bones[1] == pytest.approx(1.12, abs=0.02)
    assert np.allclose(joints[[1, 4, 7, 10]], before[[1, 4, 7, 10]], atol=1.5e-3)
    steps = hand.shape_directions[hand.faces[:, 0]] - hand.shape_directions[hand.faces[:, 1]]
    length = np.linalg.norm(
        hand.template[hand.faces[:, 0]] - hand.template[hand.faces[:, 1]], axis=1
    )
    assert (np.linalg.norm(steps, axis=1) / (length[:, None] + 3e-3)).max() < 0.15  # smooth


def test_flexion_bends_towards_the_palm_about_the_joint(hand: Mano, layer: ManoLayer) -> None:
    rest = bent(layer, {})
    assert np.allclose(rest[:778], hand.template)
    for finger, first in JOINTS.items():
        tip, pip = FINGERTIPS[finger], 778 + FINGERS[finger][1]
        found = bent(layer, {first + 1: (60, 0, 0)})
        before, after = rest[tip] - rest[pip], found[tip] - found[pip]
        directions = [v / np.linalg.norm(v) for v in (before, after)]
        assert angles_between(*directions) == pytest.approx(60, abs=3)
        assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), abs=1e-3)
        if finger != "thumb":
            assert after[1] - before[1] < -0.02
            spread = bent(layer, {first: (0, 10, 0)})
            assert spread[tip, 2] - rest[tip, 2] > 0.01  # towards the thumb


def test_bent_joints_swell_a_little(hand: Mano, layer: ManoLayer) -> None:
    without = Mano(**{**vars(hand), "pose_directions": np.zeros_like(hand.pose_directions)})
    fist = dict.fromkeys(range(1, 13), (80, 0, 0))
    moved = bent(layer, fist) - bent(ManoLayer(without, dtype=torch.float64), fist)
    assert 0.8e-3 < np.linalg.norm(moved[:778], axis=1).max() < 5e-3
    # Keypoints are means of vertices around a joint: they stay to a fraction of that.
    regressed = hand.keypoint_regressor @ moved[:778]
    assert np.linalg.norm(regressed, axis=1).max() < 0.3e-3


def test_poses_are_within_the_limits_of_joints(hand: Mano, layer: ManoLayer) -> None:
    pose = sample_pose(np.random.default_rng(0), 500)
    assert pose.shape == (500, 48) and np.isfinite(pose).all()
    assert (np.linalg.norm(pose[:, :3], axis=1) <= np.pi + 1e-9).all()
    flat = pose.copy()
    flat[:, :3] = 0
    keypoints = posed(layer, flat, np.zeros((500, 10)), hand.pose_mean)[:, 778:]
    rest = bent(layer, {})[778:]
    bends = {}
    for finger, (mcp, pip, dip, tip) in FINGERS.items():
        bones = np.diff(keypoints[:, [mcp, pip, dip, tip]], axis=1)  # (500, 3, 3)
        bones /= np.linalg.norm(bones, axis=2, keepdims=True)
        start = np.diff(rest[[mcp, pip, dip, tip]], axis=0)
        start /= np.linalg.norm(start, axis=1, keepdims=True)
        for k in (0, 1):
            bends[finger, k] = angles_between(bones[:, k], bones[:, k + 1])
            offset = angles_between(start[k], start[k + 1])
            assert bends[finger, k].max() <= (105, 75)[k] + offset + 3
            assert bends[finger, k].std() > 8
        if finger == "thumb":
            continue
        base = np.degrees(np.arctan2(-bones[:, 0, 1], -bones[:, 0, 0]))
        assert base.min() > -20 and base.max() < 100 and np.ptp(base) > 80
        sideways = np.degrees(np.arcsin(bones[:, 0, 2]) - np.arcsin(start[0, 2]))
        assert np.abs(sideways).max() < 25
        # The end joint follows the middle joint.
        bent_enough = bends[finger, 0] > 15
        share = bends[finger, 1][bent_enough] / bends[finger, 0][bent_enough]
        assert np.median(share) == pytest.approx(2 / 3, abs=0.06)
        assert np.corrcoef(bends[finger, 0], bends[finger, 1])[0, 1] > 0.9
    # Open hands, fists and single fingers are all there.
    middle = np.stack([bends[f, 0] for f in ("index", "middle", "ring", "little")], 1)
    assert (middle < 25).all(1).mean() > 0.08 and (middle > 75).all(1).mean() > 0.04
    assert ((middle[:, 0] < 30) & (middle[:, 1:] > 70).all(1)).mean() > 0.02


def test_fingers_hardly_pass_through_one_another(hand: Mano, layer: ManoLayer) -> None:
    pose = sample_pose(np.random.default_rng(1), 150)
    pose[:, :3] = 0
    fingers = posed(layer, pose, np.zeros((150, 10)), hand.pose_mean)[:, :778]
    closed = np.argsort(fingers[:, list(FINGERTIP_VERTICES), 0].mean(1))[-12:]  # fists and the like
    doubled = []
    for vertices in fingers[closed]:
        points = vertices - 2e-3 * vertex_normals(vertices, hand.faces)
        doubled.append(np.mean(winding_numbers(points[::4], vertices, hand.faces) > 1.5))
    assert np.max(doubled) < 0.12 and np.mean(doubled) < 0.045


def test_global_turns_cover_the_sphere_and_favour_likely_views() -> None:
    pose = sample_pose(np.random.default_rng(2), 3000)
    angle = np.linalg.norm(pose[:, :3], axis=1)[:, None, None]
    axis = pose[:, :3] / angle[:, 0]
    cross = np.zeros((3000, 3, 3))  # Rodrigues' formula
    cross[:, [2, 0, 1], [1, 2, 0]], cross[:, [1, 2, 0], [2, 0, 1]] = axis, -axis
    turns = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    ahead, back = -turns[:, :, 0], turns[:, :, 1]  # where fingers and back of the hand look
    assert (ahead[:, 1] < 0).mean() > 0.55  # up rather than down
    assert (ahead[:, 2] > 0.9).mean() < 0.02  # seldom with the arm before the hand
    octants = Counter(map(tuple, np.sign(back).astype(int)))
    assert len(octants) == 8 and min(octants.values()) > 200


def test_betas_are_standard_normal() -> None:
    betas = sample_betas(np.random.default_rng(0), 4000)
    assert betas.shape == (4000, 10) and np.abs(betas).max() <= 2.5
    assert np.allclose(betas.mean(0), 0, atol=0.06) and np.allclose(betas.std(0), 0.98, atol=0.05)


def test_the_same_generator_gives_the_same_poses() -> None:
    one, two = (sample_pose(np.random.default_rng(5), 20) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, sample_pose(np.random.default_rng(6), 20))
