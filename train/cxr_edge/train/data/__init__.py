"""The data set before a network sees it: patients, splits, audit, drawn radiographs."""
