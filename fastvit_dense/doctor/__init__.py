"""What ``tools/doctor.py`` checks of a machine, a config, its data and a checkpoint; and before a run."""
