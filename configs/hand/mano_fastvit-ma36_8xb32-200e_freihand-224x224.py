# MANO regression, FastViT-MA36, 200 epochs on FreiHAND. The reference for configs/hand: the others are
# diffs of it.
#
#   torchrun --nproc_per_node 8 tools/train.py \
#       configs/hand/mano_fastvit-ma36_8xb32-200e_freihand-224x224.py --launcher pytorch
#
# 8 GPUs x 32 images = 256 images per iteration; 130,240 images / 256 = 508.75, so 509 iterations per
# epoch, 200 epochs = 101,800 iterations. The paper follows METRO's set-up and states no batch; METRO's is
# the same (its docs/EXP.md: --nproc_per_node=8, --per_gpu_train_batch_size 32, --lr 1e-4). --auto-scale-lr
# for other batches. Expected, by the paper's table 8, aligned: PJ 6.6 mm, PV 6.7 mm, F@5 0.722, F@15 0.981;
# not reproduced by this project yet (no dataset, no MANO file, no weights where it is developed).
# Data: data/freihand/{training,evaluation} and their JSON files, as unpacked. MANO: the file below; other
# places with --cfg-options model.head.mano=PATH; without it, model.head.mano=synthetic trains to another,
# procedural hand, for trying things out.
default_scope = "mmengine"
custom_imports = dict(imports=["fastvit_dense.hand"])

model = dict(
    type="HandMeshModel",
    data_preprocessor=dict(
        type="ImgDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type="FastViT",
        arch="ma36",
        out_indices=(3,),
        out_norm=False,  # one map, pooled: the layers after it learn its scale
        drop_path_rate=0.35,  # stochastic depth, the value of the ImageNet recipe (table 15)
        norm_eval=False,  # 32 images per GPU are enough for BN statistics of their own
        frozen_stages=-1,
        init_cfg=dict(type="Pretrained", checkpoint="timm://fastvit_ma36.apple_in1k"),
    ),
    head=dict(type="ManoHead", in_channels=608, mano="data/mano/MANO_RIGHT.pkl"),
    # The paper weighs each loss by 1 and leaves open which distance it is. Vertices L1 and keypoints
    # squared, as in METRO, whose set-up it follows; all L1 in the config of that name. The 3D losses
    # are root-aligned and in metres, the 2D one is in half images: [-1, 1].
    # NOTE: aligned at keypoint 9, FreiHAND's root, which predictions are relative to. METRO aligns at the
    # wrist (metro/tools/run_metro_handmesh.py, `keypoint_3d_loss`: ``gt_root = gt_keypoints_3d[:, 0,:]``;
    # its target vertices, too) and does not shift its predicted vertices.
    loss=dict(
        type="HandLoss",
        vertices=dict(criterion="l1", weight=1.0),
        keypoints=dict(criterion="mse", weight=1.0),
        keypoints_2d=dict(criterion="mse", weight=1.0),
    ),
)

# Data: METRO's crop, the middle 180 of 224 pixels scaled to 224, and its augmentation: rotation
# N(0, 90 degrees) clipped at 180, none for 6 in 10; scale N(1, 0.25) clipped at 0.25 off; each channel
# times 1 +- 0.4. No flip: all hands are right ones.
data_root = "data/freihand"
train_pipeline = [
    dict(type="LoadHandImage"),
    dict(type="RandomHandCrop"),
    dict(type="ColorNoise"),
    dict(type="PackHandInputs"),
]
test_pipeline = [
    dict(type="LoadHandImage"),
    dict(type="HandCrop"),
    dict(type="PackHandInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="FreiHAND",
        data_root=data_root,
        split="training",
        versions=("gs", "hom", "sample", "auto"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="FreiHAND", data_root=data_root, split="evaluation", pipeline=test_pipeline),
)
test_dataloader = val_dataloader
# One view of each image, as in the paper's table. pred_json=PATH writes the benchmark's file, too.
val_evaluator = dict(type="FreiHANDMetric")
test_evaluator = val_evaluator

# --tta: nine views, averaged. Reported as tta/..., apart from the figures of a single view.
tta_model = dict(type="HandTTAModel")
tta_pipeline = [
    dict(type="LoadHandImage"),
    dict(type="HandViews", rotations=(0, -30, 30), scales=(1.0, 0.9, 1.1)),
]
tta_evaluator = dict(type="FreiHANDMetric", prefix="tta")

# Schedule (appendix B.5): Adam at 1e-4, a tenth of it from epoch 100 on.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-4))
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=200, milestones=[100], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=256)

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # The last checkpoint counts. Choosing the best by the evaluation set would be training on it.
    checkpoint=dict(type="CheckpointHook", interval=10, max_keep_ckpts=3),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="HandPicturesHook"),
)
env_cfg = dict(
    cudnn_benchmark=True,  # all images are of one size
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"
load_from = None
resume = False
