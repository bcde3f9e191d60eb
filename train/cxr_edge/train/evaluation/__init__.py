"""Evaluation of a run, a bundle or a model file on labelled radiographs."""
