"""Comparison of a site's decisions with the reference of the model."""
