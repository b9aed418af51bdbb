# The demo: Mask R-CNN, FastViT-T8, from scratch on the rendered shapes of tools/sample_data.py, for a CPU.
#
#   make demo
#
# Also an example of a data set of one's own: paths, classes, image size and schedule are overridden.
# The backbone is whole; FPN, heads and samples, which a CPU spends its time on, are a fraction.
_base_ = "mask-rcnn_fastvit-t8_fpn_1x_coco.py"

data_root = "data/shapes/"
metainfo = dict(
    classes=("disc", "square", "triangle", "star", "ring"),
    palette=[(214, 39, 40), (44, 160, 44), (31, 119, 180), (255, 152, 0), (148, 39, 189)],
)
num_classes = 5
channels = 64  # of FPN and heads, 256 in the reference
norm = dict(type="BN")  # without pretrained weights FPN and masks learn slowly unless normalised

model = dict(
    backbone=dict(norm_eval=False, init_cfg=None),  # from scratch: BN learns its statistics
    neck=dict(out_channels=channels, norm_cfg=norm),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4]),  # from 16 pixels on: images are scaled to 192
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            in_channels=channels,
            fc_out_channels=512,
            num_classes=num_classes,
            loss_cls=dict(loss_weight=2.0),  # boxes and masks are learned long before classes
        ),
        mask_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            norm_cfg=norm,
            num_classes=num_classes,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=200)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(192, 192), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
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

# 58 iterations an epoch: 240 images in fours, less those without an object.
train_cfg = dict(max_epochs=14, val_interval=14)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=14, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=3e-3, weight_decay=0.05, fused=True))
channels_last = True  # a tenth faster on a CPU
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=20), visualization=dict(score_thr=0.7))
visualizer = dict(alpha=0.4)
randomness = dict(seed=0)
