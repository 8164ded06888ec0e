"""How much recordings may take: the named budgets of a device, and which sizes fit in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import define, field

from intarsia.interfaces import Box, PieceSignature, StaticGraphBackend
from intarsia.static_graph.table import amounts

Amounts = Mapping[str, int]


class OutOfBudget(Exception):
    """The next recording would take more of a resource than there is."""


@define
class Budget:
    """What recordings may take of each resource, and what one of them took at least so far."""

    limits: Amounts
    used: dict[str, int] = field(factory=dict)
    least: dict[str, int] = field(factory=dict)

    @classmethod
    def open(
        cls, backend: StaticGraphBackend, device: int | None, chosen: Amounts,
        earlier: Budget | None = None,
    ) -> Budget:  # fmt: skip
        """Return a budget of what the device has left, and of no more than was chosen.

        `earlier`: the budget of the same recordings so far, which goes on.
        """
        used = {} if earlier is None else dict(earlier.used)
        limits = {n: v + used.get(n, 0) for n, v in backend.budget(device).items()}
        limits.update({n: min(v, limits.get(n, v)) for n, v in chosen.items()})
        return cls(limits, used, {} if earlier is None else dict(earlier.least))

    def before(self) -> None:
        """Refuse another recording where not even the smallest so far would fit.

        Raises:
            OutOfBudget: naming the resource.
        """
        for resource, limit in self.limits.items():
            used, next_one = self.used.get(resource, 0), self.least.get(resource, 0)
            if used + next_one > limit:
                raise OutOfBudget(f"{resource}: {used} of {limit} are used, and a recording takes "
                                  f"{next_one} or more")  # fmt: skip

    def take(self, cost: Amounts) -> None:
        """Add what a recording took.

        Raises:
            OutOfBudget: it is more than there is.
        """
        for resource, amount in cost.items():
            self.used[resource] = self.used.get(resource, 0) + amount
            self.least[resource] = min(self.least.get(resource, amount), amount)
        for resource, limit in self.limits.items():
            if self.used.get(resource, 0) > limit:
                raise OutOfBudget(f"{resource}: {self.used[resource]} of {limit} would be used")

    def give(self, cost: Amounts) -> None:
        """Subtract what recordings took that were released."""
        for resource, amount in cost.items():
            self.used[resource] = self.used.get(resource, 0) - amount

    def room_for(self, cost: Amounts) -> str:
        """Return why an estimated cost does not fit; "" where it does."""
        for resource, limit in self.limits.items():
            used, amount = self.used.get(resource, 0), cost.get(resource, 0)
            if used + amount > limit:
                left = max(limit - used, 0)
                return (
                    f"it would take {amounts({resource: amount})}, and {left} of {limit} are left"
                )
        return ""


def estimate(
    backend: StaticGraphBackend, calls: Sequence[tuple[PieceSignature, Box]]
) -> dict[str, int] | None:
    """Return what recordings will cost together; None where the backend cannot tell."""
    total: dict[str, int] = {}
    for signature, box in calls:
        cost = backend.estimate(signature, box)
        if cost is None:
            return None
        for resource, amount in cost.items():
            total[resource] = total.get(resource, 0) + amount
    return total
