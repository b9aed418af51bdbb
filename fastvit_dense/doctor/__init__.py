"""What ``tools/doctor.py`` says about a machine, a config, its data, and a checkpoint."""
