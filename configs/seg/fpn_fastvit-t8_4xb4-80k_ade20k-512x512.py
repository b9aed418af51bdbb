_base_ = "fpn_fastvit-sa12_4xb4-80k_ade20k-512x512.py"
init_cfg = dict(checkpoint="timm://fastvit_t8.apple_in1k")
model = dict(
    backbone=dict(arch="t8", drop_path_rate=0.0, init_cfg=init_cfg),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
