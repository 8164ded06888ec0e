"""Static graphs: recordings of a device's work, checked before each replay."""
