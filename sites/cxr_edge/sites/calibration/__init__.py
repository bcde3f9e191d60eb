"""The threshold of a site: from its labels, or from the valley between the two modes of its logits."""
