"""Where a decision comes from: Grad-CAM and integrated gradients."""
