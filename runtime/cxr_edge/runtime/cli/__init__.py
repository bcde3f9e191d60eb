"""The command `cxr-edge` and what its runtime commands do."""
