"""Comparison of two sides in one run: bundles, revisions of this project, and a control."""
