"""Training: from radiographs to a run folder, and its evaluation."""
