"""Results as tables for the terminal, and the page of the demo."""
