# Expected, by the paper: box AP 45.1, mask AP 40.5.
_base_ = "mask-rcnn_fastvit-sa12_fpn_1x_coco.py"
init_cfg = dict(checkpoint="timm://fastvit_ma36.apple_in1k")
model = dict(
    backbone=dict(arch="ma36", drop_path_rate=0.35, init_cfg=init_cfg),
    neck=dict(in_channels=[76, 152, 304, 608]),
)
