"""The JIT door's own parts: one of Dynamo's graphs, its key, its bundle, and its callable.

A graph is looked up by what it is (`key`), loaded where it was kept (`loading`), else compiled (`cold`) and
kept. What Dynamo gets is torch's `SerializableCallable` (`callable`), which is saved as the bundle itself.
"""
