"""Code that several stages share: data set, run folder, statistics, limits, progress, pages."""
