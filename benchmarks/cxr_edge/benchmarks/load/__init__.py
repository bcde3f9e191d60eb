"""Behaviour under load: MLPerf's scenarios."""
