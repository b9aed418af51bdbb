"""Measurements: latency, throughput, training speed, sizes beside the paper's."""
