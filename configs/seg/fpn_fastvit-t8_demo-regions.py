# The demo: Semantic FPN, FastViT-T8, from scratch on the rendered regions of tools/sample_data.py, for a CPU.
#
#   make demo-seg
#
# Also an example of a dataset of one's own classes in ADE20K's layout: they are a part of ADE20K's 150, by
# which the label images are mapped. The backbone is whole; FPN and head are a quarter as wide.
_base_ = "fpn_fastvit-t8_8xb4-40k_ade20k-512x512.py"

data_root = "data/regions"
metainfo = dict(
    classes=("wall", "building", "sky", "floor", "tree", "road", "grass", "water"),
    palette=[
        (178, 120, 120),
        (230, 60, 60),
        (80, 200, 230),
        (200, 140, 80),
        (30, 130, 30),
        (120, 120, 120),
        (120, 220, 80),
        (20, 90, 200),
    ],
)
crop_size = (192, 192)
channels = 64
norm = dict(type="BN")

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(norm_eval=False, init_cfg=None),  # from scratch: BN learns its statistics
    neck=dict(out_channels=channels, norm_cfg=norm),
    decode_head=dict(in_channels=[channels] * 4, channels=channels, num_classes=8, norm_cfg=norm),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [  # of its own: ADE20K's sizes are not those of these pictures
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
            [dict(type="ResizeToMultiple", size_divisor=32)],
            [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (0.0, 1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="CheckLabels")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

# 300 iterations x 8 images of 240 = 10 epochs.
train_cfg = dict(max_iters=300, val_interval=300)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="PolyLR", power=0.9, begin=50, end=300, eta_min=0.0, by_epoch=False),
]
optim_wrapper = dict(optimizer=dict(lr=3e-3, weight_decay=0.05, fused=True))
channels_last = True  # a tenth faster on a CPU
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=300))
randomness = dict(seed=0)
