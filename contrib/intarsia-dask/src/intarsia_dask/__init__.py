"""Compiles on a Dask cluster (`intarsia_dask.executor`), and a cache that the cluster's scheduler holds: the
stores "dask-scheduler" and "dask-scheduler+tls". fsspec has a "dask" of its own, which is the workers' files.

Nothing here imports torch or Dask.
"""

from __future__ import annotations

from intarsia.interfaces import StoreSpec

intarsia_api_version = (1, 0)


def intarsia_stores() -> list[StoreSpec]:
    """Bring the stores."""
    return [
        StoreSpec(scheme=scheme, factory="intarsia_dask.store:DaskStore")
        for scheme in ("dask-scheduler", "dask-scheduler+tls")
    ]
