"""Fitting a network: recipe, calibration, thresholds, and the run folder."""
