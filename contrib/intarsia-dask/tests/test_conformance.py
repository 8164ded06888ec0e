"""The conformance kit over the cache that a scheduler holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import LocalCluster

from intarsia.testing.conformance.subject import Subject
from intarsia.testing.suites import StoreSuite

pytestmark = pytest.mark.contrib


class TestDask(StoreSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Iterator[Subject]:
        """Name the store of a scheduler of these tests."""
        with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
            yield Subject("store", cluster.scheduler_address.replace("tcp://", "dask-scheduler://"))
