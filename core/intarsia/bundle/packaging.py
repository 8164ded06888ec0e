"""Has the packages of a plan made, in the background or now, and put in; both front doors use it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from intarsia.bundle.bundle import Bundle
from intarsia.cache.cache import Cache
from intarsia.job import CompileJob
from intarsia.runtime.bound import PieceFunction
from intarsia.runtime.swapping import Swappable

if TYPE_CHECKING:
    from intarsia.compiling.packages import PackageTask


def start_packages(
    job: CompileJob, cache: Cache, bundle: Bundle, target: Swappable, functions: Mapping[int, Any],
    keep: Callable[[Bundle, Any], None],
) -> None:  # fmt: skip
    """Have the packages made: in the background, or now where nothing else will do.

    Args:
        bundle: tells which packages are still to be made.
        target: the plans that they are for; they may be gone before they are done.
        functions: the callables of the pieces, by number.
        keep: takes the bundle with the packages, and the target, or None if it is gone.
    """
    from intarsia.compiling.packages import Packages

    live: Callable[[], Swappable | None] = weakref.ref(target)

    def swap(made: Mapping[int, PieceFunction]) -> bool:
        there = live()
        by_id = {id(functions[number]): function for number, function in made.items()}
        return there is not None and there.swap(by_id)

    packages = Packages(
        _tasks(bundle), job.host, job.resolved, job.place.device, cache, job.events, swap,
        lambda made: keep(bundle.with_packages(made), live()),
    )  # fmt: skip
    target.packages = packages
    now = job.config.artifact == "package"
    packages.start(background=not now)
    if now:
        packages.wait(None)


def _tasks(bundle: Bundle) -> list[PackageTask]:
    from intarsia.compiling.packages import PackageTask
    from intarsia.compiling.plain import signature_from_dict

    plan = bundle.plan["plans"]
    return [
        PackageTask(
            entry["function"], entry["name"], entry["compiler"], bundle.requests[entry["request"]],
            signature_from_dict(plan["signatures"][plan["functions"][entry["function"]]["signature"]]),
            entry["factors"],
        )
        for entry in bundle.plan["packages"]
    ]  # fmt: skip
