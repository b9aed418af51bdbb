"""A hand model of random numbers, with the joints of an open right hand."""

import numpy as np

from fastvit_dense.hand.mano.arrays import Mano

# (16, 3), metres: fingers along -x, back of the hand towards +y, thumb towards +z.
JOINTS = np.array(
    [
        (0.09, 0.00, 0.00),
        (0.00, 0.00, 0.03), (-0.03, 0.00, 0.03), (-0.05, 0.00, 0.03),
        (0.00, 0.00, 0.00), (-0.03, 0.00, 0.00), (-0.06, 0.00, 0.00),
        (0.02, 0.00, -0.04), (0.00, 0.00, -0.05), (-0.01, 0.00, -0.06),
        (0.01, 0.00, -0.02), (-0.02, 0.00, -0.02), (-0.04, 0.00, -0.03),
        (0.07, -0.01, 0.03), (0.05, -0.02, 0.05), (0.03, -0.03, 0.07),
    ]
)  # fmt: skip


def random_mano(seed: int = 0) -> Mano:
    """Every array is random; the faces are nobody's surface, but wound as seen from outside."""
    rng = np.random.default_rng(seed)
    nearest = np.arange(778) % 16
    template = JOINTS[nearest] + rng.normal(size=(778, 3)) * 0.005
    regressor = rng.random((16, 778)) * (nearest == np.arange(16)[:, None])
    regressor /= regressor.sum(1, keepdims=True)
    weights = rng.random((778, 16)) ** 4
    faces = rng.permuted(np.tile(np.arange(778), (1538, 1)), axis=1)[:, :3]
    inward = np.linalg.det(template[faces] - regressor[0] @ template) < 0
    faces[inward] = faces[inward, ::-1]
    return Mano(
        template=template,
        faces=faces,
        shape_directions=rng.normal(size=(778, 3, 10)) * 0.005,
        pose_directions=rng.normal(size=(778, 3, 135)) * 0.001,
        joint_regressor=regressor,
        skinning_weights=weights / weights.sum(1, keepdims=True),
        pose_components=np.linalg.qr(rng.normal(size=(45, 45)))[0],
        pose_mean=rng.normal(size=45) * 0.05,
    )
