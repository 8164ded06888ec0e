"""Run: stitching code, bound plans, dispatch."""
