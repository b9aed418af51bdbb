"""What is trained, made ready to leave: fused checkpoints, exported files, runtimes."""
