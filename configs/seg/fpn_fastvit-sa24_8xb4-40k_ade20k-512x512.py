# The paper's mIoU (table 9; its 80k): 41.0.
_base_ = "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"
init_cfg = dict(checkpoint="timm://fastvit_sa24.apple_in1k")
model = dict(
    backbone=dict(arch="sa24", drop_path_rate=0.1, init_cfg=init_cfg),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
