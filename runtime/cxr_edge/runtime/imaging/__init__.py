"""Reading, checking and preprocessing of images."""
