"""Graph passes: which run, in which order, and the checks around each."""
