"""Compiles on a Dask cluster (`intarsia_dask.executor`), and the stores "dask" and "dask+tls": a cache that
the cluster's scheduler holds.

Nothing here imports torch or Dask.
"""

from __future__ import annotations

from intarsia.interfaces import StoreSpec

intarsia_api_version = (1, 0)


def intarsia_stores() -> list[StoreSpec]:
    """Bring the stores."""
    return [
        StoreSpec(scheme=scheme, factory="intarsia_dask.store:DaskStore")
        for scheme in ("dask", "dask+tls")
    ]
