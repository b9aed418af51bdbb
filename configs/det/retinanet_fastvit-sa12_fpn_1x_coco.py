# RetinaNet, FastViT-SA12, FPN, 1x on COCO.
#
#   torchrun --nproc_per_node 8 tools/train.py configs/det/retinanet_fastvit-sa12_fpn_1x_coco.py \
#       --launcher pytorch
#
# 8 GPUs x 2 images, 12 epochs of 7,330 iterations = 87,960, as the Mask R-CNN reference. The paper
# states no figure for it.
# The learning rate is half of Mask R-CNN's, as in PoolFormer's configs, whose recipe the paper follows
# (sail-sg/poolformer, detection/configs/retinanet_poolformer_s12_fpn_1x_coco.py: "lr=0.0001").
_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/default_runtime.py",
]
custom_imports = dict(imports=["fastvit_dense.det"])

model = dict(
    backbone=dict(
        _delete_=True,
        type="FastViT",
        arch="sa12",
        # FPN starts at stride 8: the map at stride 4 and its norm are not built.
        out_indices=(1, 2, 3),
        drop_path_rate=0.1,
        norm_eval=True,
        frozen_stages=-1,
        init_cfg=dict(type="Pretrained", checkpoint="timm://fastvit_sa12.apple_in1k"),
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=2, dataset=dict(type="CheckedCocoDataset", pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(type="CheckedCocoDataset", pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(classwise=True)
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4))
auto_scale_lr = dict(enable=False, base_batch_size=16)

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best="coco/bbox_mAP"))
custom_hooks = [dict(type="NumClassCheckHook")]
visualizer = dict(vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
