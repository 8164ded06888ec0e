"""What tracing sees of a `torch.distributed` job: part of a plan's key, and compared when it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import CodeType

import torch.distributed as dist

from intarsia import torch_compat

_ASK_FOR_RANK = frozenset(
    {"get_rank", "get_group_rank", "get_local_rank", "get_coordinate", "rank"}
)
"""Names in code that may ask which rank this is: Dynamo makes a constant of the answer, without a guard."""


def job_factors() -> dict[str, str]:
    """Return the sizes of the process groups that this process is in, {} where there is no job.

    Graphs hold the names and the sizes of groups. The rank is not in it: ranks share what they compile.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return {}
    return {
        "world size": str(dist.get_world_size()),
        "process groups": json.dumps(torch_compat.group_sizes(), sort_keys=True),
    }


def asks_for_rank(codes: Iterable[CodeType]) -> bool:
    """Say whether code that was traced may have asked which rank this is."""
    return any(_ASK_FOR_RANK.intersection(code.co_names) for code in codes)


def present_rank() -> int | None:
    """Return which rank this is; None where there is no job."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.get_rank()
