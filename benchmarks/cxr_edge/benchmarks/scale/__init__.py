"""How times grow with images, threads, batch, size of the originals, input and width of the network."""
