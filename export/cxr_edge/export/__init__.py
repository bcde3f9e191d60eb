"""Export of a run folder to a bundle of model files, and verification of these files."""
