"""Bundles: everything a warm start needs, in one file for each plan.

A bundle is looked up by what is known without tracing (`lookup`), checked against what tracing had read
(`reading`), and holds the plan as plain data (`plans`, `front`) with the artifacts of its pieces.
"""
