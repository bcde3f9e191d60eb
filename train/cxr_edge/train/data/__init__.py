"""The data set: patients, splits, audit, perturbations, drawn radiographs."""
