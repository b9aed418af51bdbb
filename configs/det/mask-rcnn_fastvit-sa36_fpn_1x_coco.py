# Expected, by the paper: box AP 43.8, mask AP 39.4.
_base_ = "mask-rcnn_fastvit-sa12_fpn_1x_coco.py"
init_cfg = dict(checkpoint="timm://fastvit_sa36.apple_in1k")
model = dict(
    backbone=dict(arch="sa36", drop_path_rate=0.2, init_cfg=init_cfg),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
