"""Files, weights as plain data, images and video."""
