"""Benchmarks of a bundle and its peers, and the demo."""
