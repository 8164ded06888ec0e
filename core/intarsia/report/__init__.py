"""Report: what happened, what runs, and why."""
