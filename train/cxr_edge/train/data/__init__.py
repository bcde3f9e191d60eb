"""The data set: patients, splits, batches, audit, perturbations, drawn radiographs."""
