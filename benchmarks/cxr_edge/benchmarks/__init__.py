"""Benchmarks of a bundle and of alternatives, and the demo."""
