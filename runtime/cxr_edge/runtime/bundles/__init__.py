"""What travels with a model, and why it can be believed."""
