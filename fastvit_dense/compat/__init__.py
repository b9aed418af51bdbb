"""What stands in for mmcv, and which versions fit together."""
