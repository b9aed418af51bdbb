# Semantic FPN, FastViT-SA12, 80k iterations on Cityscapes. The paper states no figure for it.
#
#   torchrun --nproc_per_node 4 tools/train.py \
#       configs/seg/fpn_fastvit-sa12_4xb2-80k_cityscapes-512x1024.py --launcher pytorch
#
# 4 GPUs x 2 images = 8 images: 80,000 iterations = 640,000 images = 215 epochs of 2,975, mmseg's usual
# length. The learning rate is ADE20K's for 32 images, scaled to 8: 2e-4 x 8 / 32 = 5e-5.
# Data: data/cityscapes/{leftImg8bit,gtFine}, label images made by cityscapesscripts (*_labelTrainIds).
_base_ = "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"

crop_size = (512, 1024)
model = dict(data_preprocessor=dict(size=crop_size), decode_head=dict(num_classes=19))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),  # full size, multiples of 32
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="PackSegInputs"),
]
dataset = dict(type="CheckedCityscapesDataset", data_root="data/cityscapes/")
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
tta_pipeline = None  # ADE20K's sizes are not Cityscapes'

train_cfg = dict(max_iters=80000, val_interval=8000)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [dict(type="PolyLR", power=0.9, begin=0, end=80000, eta_min=0.0, by_epoch=False)]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(checkpoint=dict(interval=8000))
