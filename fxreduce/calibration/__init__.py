"""Calibration: running a loader through a model, and the statistics of its rectifiers' inputs."""
