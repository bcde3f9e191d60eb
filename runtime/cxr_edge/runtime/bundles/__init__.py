"""Bundles: manifest, integrity, signatures and bill of materials."""
