# Expected, by the paper: box AP 42.0, mask AP 38.0.
_base_ = "mask-rcnn_fastvit-sa12_fpn_1x_coco.py"
init_cfg = dict(checkpoint="timm://fastvit_sa24.apple_in1k")
model = dict(
    backbone=dict(arch="sa24", drop_path_rate=0.1, init_cfg=init_cfg),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
