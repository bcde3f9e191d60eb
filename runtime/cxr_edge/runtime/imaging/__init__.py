"""From an image file to the network's input."""
