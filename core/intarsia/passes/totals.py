"""How often passes matched over a whole graph, and whether that is often enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from intarsia.boxes_text import describe_box
from intarsia.errors import PassError
from intarsia.interfaces import Box, PassRun, PassSpec

__all__ = ["PassTotal", "check_matches", "totals"]


@frozen
class PassTotal:
    """One pass over a whole graph, for one box.

    Attributes:
        matches: how often it matched; None: it does not count.
        runs: over how many graphs it ran; equal pieces count each.
        failures: why what it did was undone, each reason once.
    """

    name: str
    stage: str
    box: str
    matches: int | None
    runs: int
    seconds: float
    failures: tuple[str, ...] = ()


def totals(specs: Sequence[PassSpec], runs: Iterable[PassRun], box: Box) -> list[PassTotal]:
    """Return a total for each pass that ran, or that must match and did not even run."""
    by_name: dict[str, list[PassRun]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    found = []
    for spec in specs:
        mine = by_name.get(spec.name, [])
        if mine or spec.min_matches:
            counts = [run.matches for run in mine if run.matches is not None]
            failures = tuple(dict.fromkeys(run.error for run in mine if run.error))
            found.append(PassTotal(
                spec.name, spec.stage, describe_box(box), sum(counts) if counts else None, len(mine),
                sum(run.seconds for run in mine), failures,
            ))  # fmt: skip
    return found


def check_matches(specs: Sequence[PassSpec], found: Sequence[PassTotal], strict: bool) -> list[str]:
    """Return a warning for each pass that matched too seldom, or failed.

    Raises:
        PassError: one did so, and `strict` is on; also where a piece without it comes out of the cache.
    """
    wanted = {spec.name: spec.min_matches for spec in specs if spec.min_matches}
    warnings = []
    for total in found:
        for why in total.failures:
            if strict:
                raise PassError(
                    f'the pass "{total.name}" was undone when the piece was compiled', why=why,
                    next_step=f'Leave it out: passes.disable = ["{total.name}"], or compile without strict.',
                    subject=total.name,
                )  # fmt: skip
            warnings.append(f'the pass "{total.name}" was undone: {why}')
        least = wanted.get(total.name, 0)
        matches = total.matches or 0
        if matches >= least or total.failures:
            continue
        text = (
            f'the pass "{total.name}" matched {matches} times for {total.box}, not {least} or more'
        )
        if strict:
            raise PassError(
                text, why="the model, or what runs before the pass, has changed",
                next_step="Mend its pattern, or lower min_matches.", subject=total.name,
            )  # fmt: skip
        warnings.append(text)
    return warnings
