"""Verification of each exported file against the trained network."""
