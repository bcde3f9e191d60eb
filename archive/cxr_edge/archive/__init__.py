"""Scoring of archives: many radiographs on many machines, and a report on the result."""
