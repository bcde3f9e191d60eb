"""A model at its site: a threshold of its own, and an alarm when its images change."""
