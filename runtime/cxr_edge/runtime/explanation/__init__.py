"""Explanations of decisions: Grad-CAM and integrated gradients."""
