"""Capture: from a model and one example call to a graph and its input contract."""
