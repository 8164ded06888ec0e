"""Several processes that must have the same plan: the ranks of a job, a parent and its children."""
