"""Export: from a run folder to a bundle of model files, and the proof that they decide alike."""
