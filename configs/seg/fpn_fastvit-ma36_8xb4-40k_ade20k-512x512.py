# The paper's mIoU (table 9; its 80k): 44.6.
_base_ = "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"
init_cfg = dict(checkpoint="timm://fastvit_ma36.apple_in1k")
model = dict(
    backbone=dict(arch="ma36", drop_path_rate=0.35, init_cfg=init_cfg),
    neck=dict(in_channels=[76, 152, 304, 608]),
)
