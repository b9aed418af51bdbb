# The demo: Mask R-CNN, FastViT-T8, from scratch on the drawn shapes of tools/sample_data.py, for a CPU.
#
#   make demo
#
# Also an example of a data set of one's own: paths, classes, image size and schedule are overridden.
# The backbone is whole; FPN, heads and samples, which a CPU spends its time on, are a fraction.
_base_ = "mask-rcnn_fastvit-t8_fpn_1x_coco.py"

data_root = "data/shapes/"
metainfo = dict(classes=("disc", "square", "triangle", "star", "ring"))
num_classes = 5
channels = 64  # of FPN and heads, 256 in the reference

model = dict(
    backbone=dict(norm_eval=False, init_cfg=None),  # from scratch: BN learns its statistics
    neck=dict(out_channels=channels),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(
            scales=[4]
        ),  # anchors from 16 pixels on: the images are scaled to 192
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=channels, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(
            in_channels=channels, conv_out_channels=channels, num_classes=num_classes, num_convs=2
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(192, 192), keep_ratio=True),
    dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="Resize", scale=(192, 192), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator

# 240 images / 4 = 60 iterations an epoch, 10 epochs.
train_cfg = dict(max_epochs=10, val_interval=10)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05, fused=True))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=20))
randomness = dict(seed=0)
