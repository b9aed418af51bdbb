# Mask R-CNN, FastViT-SA12, FPN, 1x on COCO. The reference for configs/det: the others are diffs of it.
#
#   torchrun --nproc_per_node 8 tools/train.py configs/det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py \
#       --launcher pytorch
#
# 8 GPUs x 2 images = 16 images per iteration; 117,266 images with annotations / 16 = 7,330 iterations
# per epoch, 12 epochs = 87,960 iterations. Expected, by the paper's table 10: box AP 38.9, mask AP 35.9;
# not reproduced by this project yet (no dataset, no weights where it is developed).
# Data: data/coco/{annotations,train2017,val2017}; other datasets: README.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/default_runtime.py",
]
custom_imports = dict(imports=["fastvit_dense.det"])

model = dict(
    backbone=dict(
        _delete_=True,
        type="FastViT",
        arch="sa12",
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,  # stochastic depth, the value of the ImageNet recipe (table 15)
        norm_eval=True,  # 2 images per GPU: the pretrained BN statistics are kept; output norms train
        frozen_stages=-1,
        init_cfg=dict(type="Pretrained", checkpoint="timm://fastvit_sa12.apple_in1k"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

# Data: CheckImage follows LoadImageFromFile, CheckedCocoDataset replaces CocoDataset; both turn what
# would pass in silence (truncated JPEGs, classes that do not match) into errors.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
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

# Schedule: 1x, learning rate for 16 images per iteration (--auto-scale-lr for other batches).
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4))
auto_scale_lr = dict(enable=False, base_batch_size=16)

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best="coco/bbox_mAP"))
custom_hooks = [dict(type="NumClassCheckHook")]
visualizer = dict(vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
