"""Rendered data sets in the layouts of COCO, ADE20K and FreiHAND, to train on without a download."""
