"""One compile is compared with the other ranks, and with the manifest that came along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field

from intarsia.job import CompileJob
from intarsia.ranks.agreement import Agreement, check_expected
from intarsia.report.records import Report


@define
class PlanCheck:
    """What stands before and after the compile of one job; it costs nothing where nothing is compared.

    Attributes:
        ranks: compares with the other ranks.
        expect: the manifest of another process, or None.
    """

    job: CompileJob
    model: Any
    ranks: Agreement
    expect: Mapping[str, Any] | None
    _setup: dict[str, str] | None = field(default=None, init=False)

    def setup(self, runs: str = "compiled") -> None:
        """Compare what is asked for, and how it is going to run.

        Raises:
            MismatchError.
        """
        if self.expect is None and self.ranks.exchange is None:
            return
        mine = self._own_setup()
        check_expected(self.expect, "setup", mine)
        self.ranks.setup({"the graph runs": runs, **mine}, self.job.config.exchange_deadline)

    def plan(self, report: Callable[[], Report]) -> None:
        """Compare what was made.

        Raises:
            MismatchError.
        """
        if self.expect is not None:
            from intarsia.ranks.summary import plan_of

            check_expected(self.expect, "plan", plan_of(report()))
        self.ranks.plan_of(report, self.job.config.exchange_deadline)

    def _own_setup(self) -> dict[str, str]:
        if self._setup is None:
            from intarsia.ranks.summary import setup_of  # who compares nothing need not import it

            self._setup = setup_of(self.job, self.model)
        return self._setup


def manifest_of(job: CompileJob, model: Any, report: Report) -> dict[str, dict[str, str]]:
    """Return what another process must have to make the same plan, JSON-able."""
    from intarsia.ranks.summary import plan_of, setup_of

    return {"setup": setup_of(job, model), "plan": plan_of(report)}
