# Mask R-CNN, FastViT-SA12, 3x on COCO with large-scale jitter, as a diff of the 1x reference.
#
#   torchrun --nproc_per_node 8 tools/train.py configs/det/mask-rcnn_fastvit-sa12_fpn_3x-lsj_coco.py \
#       --launcher pytorch
#
# 8 GPUs x 2 images, 36 epochs of 7,330 iterations = 263,880. The paper states no figure for it.
_base_ = "mask-rcnn_fastvit-sa12_fpn_1x_coco.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    # Large-scale jitter: the image at 0.1 to 2 times 1024 pixels, cropped to at most 1024.
    dict(type="RandomResize", scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=(1024, 1024),
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
