"""Split: rules say where to cut, partition cuts, the canonical form tells equal pieces."""
