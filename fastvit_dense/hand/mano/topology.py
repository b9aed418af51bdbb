"""What is fixed about the hand: counts, joints, fingertips and FreiHAND's 21 keypoints.

MANO has 16 joints, each with a rotation: the wrist, then index, middle, little, ring and thumb with
three each, from base to tip. FreiHAND has 21 keypoints: the wrist, then thumb, index, middle, ring and
little with four each, from base to tip. The tips are no joints but vertices of the mesh.
"""

NUM_VERTICES = 778
NUM_FACES = 1538
NUM_ROTATIONS = 16
NUM_KEYPOINTS = 21
NUM_BETAS = 10
# The parent of each of MANO's joints: five chains of three hang on the wrist, which has none.
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
# Vertices at the tips of thumb, index, middle, ring and little finger.
# NOTE: these are FreiHAND's (utils/mano_utils.py, `kpId2vertices`), which its metric needs. Other projects
# use others: smplx has 554 and 671 for the last two; manopth 745, 317, 444, 556, 673; METRO these, but 445.
FINGERTIP_VERTICES = (744, 320, 443, 555, 672)
# Keypoint i is number KEYPOINT_ORDER[i] of: MANO's 16 joints, then the 5 fingertips. (The order of
# FreiHAND's `get_keypoints_from_mesh_ch`, and of METRO's joint regressor.)
KEYPOINT_ORDER = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
# The keypoints of each finger, from base to tip.
FINGERS = {
    "thumb": (1, 2, 3, 4),
    "index": (5, 6, 7, 8),
    "middle": (9, 10, 11, 12),
    "ring": (13, 14, 15, 16),
    "little": (17, 18, 19, 20),
}
KEYPOINT_NAMES = (
    "wrist",
    "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip",
    "index_mcp", "index_pip", "index_dip", "index_tip",
    "middle_mcp", "middle_pip", "middle_dip", "middle_tip",
    "ring_mcp", "ring_pip", "ring_dip", "ring_tip",
    "little_mcp", "little_pip", "little_dip", "little_tip",
)  # fmt: skip
# The bones between keypoints, (parent, child) in the order of the children.
BONES = tuple(
    (parent, child)
    for finger in FINGERS.values()
    for parent, child in zip((0, *finger), finger, strict=False)
)
# The keypoint that root-relative coordinates are relative to: the base of the middle finger.
ROOT = 9
# FreiHAND's `scale` is the length of this bone.
SCALE_BONE = (9, 10)
