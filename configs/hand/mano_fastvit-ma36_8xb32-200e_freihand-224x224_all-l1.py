# The other reading of the paper's losses: L1 for all three.
_base_ = "mano_fastvit-ma36_8xb32-200e_freihand-224x224.py"
l1 = dict(criterion="l1")
model = dict(loss=dict(keypoints=l1, keypoints_2d=l1))
