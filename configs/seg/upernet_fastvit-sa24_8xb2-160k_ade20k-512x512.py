# UPerNet, FastViT-SA24, 160k iterations on ADE20K. The paper has no such model: no figure to expect.
#
#   torchrun --nproc_per_node 8 tools/train.py \
#       configs/seg/upernet_fastvit-sa24_8xb2-160k_ade20k-512x512.py --launcher pytorch
#
# The schedule is the usual one for UPerNet with a recent backbone (as mmseg's for ConvNeXt, without
# layer-wise decay): 8 GPUs x 2 images = 16 images x 160,000 iterations = 2.56 M images = 127 epochs.
_base_ = "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"

norm = dict(type="SyncBN", requires_grad=True)  # BN without a GPU
widths = [64, 128, 256, 512]
head = dict(norm_cfg=norm, align_corners=False, dropout_ratio=0.1, num_classes=150)
loss = dict(type="CrossEntropyLoss", use_sigmoid=False)
model = dict(
    backbone=dict(
        arch="sa24", drop_path_rate=0.1, init_cfg=dict(checkpoint="timm://fastvit_sa24.apple_in1k")
    ),
    neck=None,
    decode_head=dict(
        _delete_=True,
        type="UPerHead",
        in_channels=widths,
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        loss_decode=dict(loss_weight=1.0, **loss),
        **head,
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=widths[2],
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(loss_weight=0.4, **loss),
        **head,
    ),
)
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=160000, val_interval=16000)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", power=1.0, begin=1500, end=160000, eta_min=0.0, by_epoch=False),
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=16000))
