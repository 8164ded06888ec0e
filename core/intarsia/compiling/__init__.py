"""Compile: which compiler for which piece, which boxes, and the tasks that follow."""
