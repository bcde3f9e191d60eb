"""Measurements of `cxr-edge score`: load, faults, and cost for millions of radiographs."""
