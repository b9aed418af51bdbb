# For images too large to segment whole (aerial, panoramas, scans): windows of 512 with an overlap of
# 128, images in their own size, memory that does not grow with their height. For another model: the same
# type, test_cfg and pipeline. Checkpoints are the reference's:
#
#   python tools/test.py configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512_tiled.py CHECKPOINT
#
# Pillow, which reads label images, refuses those above 178 956 970 pixels (13 377 x 13 377), since a
# small file can unpack into all memory. To allow more: dataset=dict(max_pixels=400_000_000, ...). OpenCV
# refuses images above 2^30 pixels; with imdecode_backend="pillow", LoadImageFromFile reads them.
_base_ = "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"
model = dict(
    type="TiledSegmentor",
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(384, 384)),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_pipeline = None  # its windows see images in their own size, and are averaged already
