"""Fitting a network: the recipe, calibration, thresholds, and the run folder."""
