_base_ = "mano_fastvit-ma36_8xb32-200e_freihand-224x224.py"
init_cfg = dict(checkpoint="timm://fastvit_t8.apple_in1k")
model = dict(
    backbone=dict(arch="t8", drop_path_rate=0.0, init_cfg=init_cfg),
    head=dict(in_channels=384),
)
