"""A look inside the network: its work, the limit of the machine, and the time of its operators."""
