# The demo: FastViT-T8, from scratch on the synthetic hands of tools/sample_data.py, for a CPU.
#
#   make demo-hand
#
# 1200 hands, four images each, in sixteens = 300 iterations per epoch, 5 epochs = 1,500 iterations.
# Expected: PV 5.4 mm, of synthetic hands, which says nothing about FreiHAND. Hands between open and a
# fist, seen from within 30 degrees of the palm; crops of 96 pixels, at which a CPU trains five times as
# fast.
_base_ = "mano_fastvit-ma36_8xb32-200e_freihand-224x224.py"

data_root = "data/hands"
crop_size = 96
l1 = dict(criterion="l1", weight=10.0)  # metres: 10 brings them to the size of the 2D loss

model = dict(
    image_size=crop_size,
    backbone=dict(arch="t8", drop_path_rate=0.0, init_cfg=None),  # from scratch
    head=dict(in_channels=384, mano="synthetic"),
    loss=dict(vertices=l1, keypoints=l1, keypoints_2d=dict(criterion="l1")),
)
train_pipeline = [
    dict(type="LoadHandImage"),
    dict(type="RandomHandCrop", out_size=crop_size, rotation_std=20, upright=0.8, scale_std=0.1),
    dict(type="ColorNoise", strength=0.2),
    dict(type="PackHandInputs"),
]
test_pipeline = [
    dict(type="LoadHandImage"),
    dict(type="HandCrop", out_size=crop_size),
    dict(type="PackHandInputs"),
]
# No workers: on two cores, passing a batch between processes takes longer than making it (10 ms).
in_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=16, dataset=dict(data_root=data_root, pipeline=train_pipeline), **in_process
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline), **in_process)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadHandImage"),
    dict(type="HandViews", rotations=(0, -15, 15), scales=(1.0,), out_size=crop_size),
]

train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=3e-3, weight_decay=0.05, fused=True)
)
channels_last = True  # a tenth faster on a CPU
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=1))
randomness = dict(seed=0)
