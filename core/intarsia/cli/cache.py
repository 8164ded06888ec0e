"""`intarsia cache`: what is in the compile cache, whether it is whole, and what may go."""

from __future__ import annotations

import json
import re
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any

from attrs import asdict

from intarsia.cache import Cache, differences, open_cache
from intarsia.cache.listing import Listed, defects, entries, find
from intarsia.cli import CHECK_FAILED, FINE, UsageError
from intarsia.cli.config_options import add_config_arguments, read_config
from intarsia.cli.table import print_json, print_table
from intarsia.config import ResolvedConfig
from intarsia.errors import CacheError
from intarsia.interfaces import StoreSpec

__all__ = ["add_arguments", "run"]

_WHY_MISS = "why-miss"
_SHORT = 12
"""Digits of a key that a table shows."""
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the actions of this subcommand, each with its options."""
    parser.description = f"{parser.description} Each action takes --json and the settings."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (purpose, arguments, _) in ACTIONS.items():
        sub = actions.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")
        arguments(sub)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.add_argument("--traceback", action="store_true", default=SUPPRESS, help=SUPPRESS)
        add_config_arguments(sub, shortcuts=name == _WHY_MISS)


def run(options: Namespace) -> int:
    """Run one action on the cache that the settings name."""
    if options.action == _WHY_MISS:
        return _why_miss(options)
    return ACTIONS[options.action][2](options, _opened(read_config(options)))


def _opened(resolved: ResolvedConfig) -> Cache:
    config = resolved.config

    def plugin_store(scheme: str) -> StoreSpec:
        from intarsia.host import Host  # only URLs need the plugins

        return Host(resolved).store(scheme)

    cache = open_cache(config.cache, key_file=config.cache_key_file, stores=plugin_store)
    if cache is None:
        raise UsageError(
            f"there is no cache: cache = false ({resolved.origin('cache')})",
            next_step="Name one: --set cache=PATH",
            subject="cache",
        )
    return cache


# ------------------------------------------------------------------------------------- actions


def _why_miss(options: Namespace) -> int:
    """Say whether a compile of the target would start from the cache; nothing is traced or compiled."""
    from intarsia.bundle.start import why_miss  # these need torch
    from intarsia.cli.target import load_target
    from intarsia.job import Job

    target = load_target(options)
    resolved = read_config(options, in_target=target.config)
    if target.name is not None:
        resolved = resolved.with_layer({"name": target.name}, "the target's name")
    job = Job(
        target.model, target.args, dict(target.kwargs), target.dynamic or {}, resolved, None, ()
    )
    reason = why_miss(job)
    if options.json:
        print_json({"name": job.name, "hit": not reason, "reason": reason})
    else:
        print(f"{job.name}: miss: {reason}" if reason else f"{job.name}: hit")
    return CHECK_FAILED if reason else FINE


def _ls(options: Namespace, cache: Cache) -> int:
    rows = [_row(item) for item in entries(cache)]
    if options.json:
        print_json(rows)
        return FINE
    several = len({row["store"] for row in rows}) > 1
    print_table(
        ("key", "kind", "name", "bytes", "unused for", "in use", "store"),
        (
            (
                row["key"][:_SHORT],
                row["kind"],
                row["name"],
                row["bytes"],
                _duration(row["unused_seconds"]),
                "yes" if row["in_use"] else "",
                row["store"] if several else "",
            )
            for row in rows
        ),
    )
    places = ", ".join(place.name for place in cache.places) or "nowhere"
    print(f"{len(rows)} entries, {sum(row['bytes'] for row in rows)} bytes in {places}")
    return FINE


def _row(item: Listed) -> dict[str, Any]:
    return {
        "key": item.key,
        "kind": item.header.kind if item.header is not None else "unreadable",
        "name": str(item.header.meta.get("name", "")) if item.header is not None else "",
        "bytes": item.stat.size,
        "unused_seconds": max(0.0, time.time() - item.stat.modified),
        "in_use": item.in_use,
        "store": item.store,
    }


def _show(options: Namespace, cache: Cache) -> int:
    key, header = find(cache, options.key)
    places = [item for item in entries(cache) if item.key == key]
    data = {
        "key": key,
        "kind": header.kind,
        "payload_bytes": header.payload_size,
        "signed": header.signed,
        "factors": len(header.factors),
        "meta": dict(header.meta),
        "stores": [item.store for item in places],
        "in_use": any(item.in_use for item in places),
    }
    if options.json:
        print_json(data)
    else:
        print_table(("what", "value"), ((name, _plain(value)) for name, value in data.items()))
    return FINE


def _explain(options: Namespace, cache: Cache) -> int:
    key, header = find(cache, options.key)
    if options.other:
        other, theirs = find(cache, options.other)
        return _differ(options, key, other, header.factors, theirs.factors)
    if options.nearest:
        near = cache.nearest(header.kind, header.factors, besides=key)
        if near is None:
            raise CacheError(f'there is no other "{header.kind}" in the cache', subject=key)
        return _differ(options, key, near.key, header.factors, find(cache, near.key)[1].factors)
    if options.json:
        print_json({"key": key, "kind": header.kind, "factors": dict(header.factors)})
    else:
        print_table(("factor", "value"), sorted(header.factors.items()))
    return FINE


def _differ(options: Namespace, key: str, other: str, ours: Any, theirs: Any) -> int:
    found = differences(ours, theirs)
    if options.json:
        rows = [asdict(item) for item in found]
        print_json({"key": key, "other": other, "differences": rows})
    elif found:
        print_table(
            ("factor", key[:_SHORT], other[:_SHORT]),
            ((item.name, item.ours, item.theirs) for item in found),
        )
    else:
        print(f"{key[:_SHORT]} and {other[:_SHORT]} have the same factors")
    return FINE


def _verify(options: Namespace, cache: Cache) -> int:
    found = list(defects(cache))
    broken = [place.name for place in cache.places if not place.usable]
    if options.json:
        rows = [dict(zip(("key", "store", "reason"), row, strict=True)) for row in found]
        print_json({"defects": rows, "unusable_stores": broken})
    elif found:
        print_table(
            ("key", "store", "reason"),
            ((key[:_SHORT], place, reason) for key, place, reason in found),
        )
    elif not broken:
        print("every entry is whole")
    return CHECK_FAILED if found or broken else FINE


def _gc(options: Namespace, cache: Cache) -> int:
    from intarsia.cache.gc import collect  # only this action needs it

    if cache.root is None:
        raise UsageError("there is nothing to collect: the cache has no directory of this machine")
    try:
        done = collect(cache.root, max_bytes=options.max_bytes, max_age=options.max_age)
    except OSError as problem:
        raise CacheError(
            f"{cache.root} cannot be collected", why=str(problem), subject=cache.root
        ) from problem
    if options.json:
        print_json(asdict(done))
        return FINE
    print(
        f"removed {len(done.removed)} entries ({done.freed} bytes) and {done.litter} files of "
        f"processes that died; {done.kept} entries ({done.kept_bytes} bytes) stay in {cache.root}"
    )
    if done.in_use:
        print(f"{done.in_use} of them are over the limit, and in use")
    return FINE


def _crashes(options: Namespace, cache: Cache) -> int:
    """List what took down processes of this machine, or forget it."""
    journal = cache.journal()
    found = [] if journal is None else sorted(journal.crashes(), key=lambda crash: crash.when)
    if options.forget and journal is not None:
        for crash in found:
            journal.clear(crash.key)
    if options.json:
        print_json([asdict(crash) for crash in found])
    elif not found:
        print("no process died while it compiled a piece or called it for the first time")
    else:
        now = time.time()
        print_table(
            ("key", "process", "when", "what"),
            (
                (c.key[:_SHORT], str(c.pid), f"{_duration(now - c.when)} ago", c.what or "unknown")
                for c in found
            ),
        )
        print(
            "forgotten" if options.forget else "To try them again: intarsia cache crashes --forget"
        )
    return FINE


def _pack(options: Namespace, cache: Cache) -> int:
    from intarsia.cache.pack import pack  # only this action needs it

    keys = pack(cache, [find(cache, options.plan)[0]], options.file)
    if options.json:
        print_json({"file": options.file, "keys": keys})
    else:
        print(f"packed {len(keys)} entries into {options.file}")
    return FINE


def _unpack(options: Namespace, cache: Cache) -> int:
    from intarsia.cache.pack import unpack  # only this action needs it

    done = unpack(cache, options.file)
    if options.json:
        print_json(asdict(done))
    else:
        print(f"stored {len(done.stored)} entries; {len(done.present)} were there already")
    return CHECK_FAILED if done.skipped else FINE


# ----------------------------------------------------------------------------------- arguments


def _nothing(parser: ArgumentParser) -> None:
    """Add no arguments."""


def _key(parser: ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="a key, or the beginning of one")


def _explain_arguments(parser: ArgumentParser) -> None:
    _key(parser)
    parser.add_argument(
        "other", metavar="OTHER", nargs="?", help="show what differs from this entry"
    )
    parser.add_argument(
        "--nearest", action="store_true", help="show what differs from the most similar entry"
    )


def _gc_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--max-bytes", metavar="N", type=_size, help="how much may stay: 500M, 2G, 0"
    )
    parser.add_argument(
        "--max-age", metavar="AGE", type=_age, help="how long an entry may lie unused: 12h, 30d"
    )


def _crashes_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--forget", action="store_true", help="forget them, so that they are tried again"
    )


def _pack_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="the key of a plan, or the beginning of it")
    parser.add_argument("file", metavar="FILE", help="the file to write")


def _unpack_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file that `intarsia cache pack` wrote")


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise ArgumentTypeError(f"expected bytes such as 500M or 2G, got {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if found is None:
        raise ArgumentTypeError(f"expected an age such as 90s, 12h or 30d, got {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def _duration(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= 2 * _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s"


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


Action = tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace, Cache], int]]


def _why_miss_arguments(parser: ArgumentParser) -> None:
    from intarsia.cli.target import add_target_argument

    add_target_argument(parser)


ACTIONS: dict[str, Action] = {
    "ls": ("list the entries", _nothing, _ls),
    "show": ("show one entry", _key, _show),
    "explain": ("show what the key of an entry was made of", _explain_arguments, _explain),
    _WHY_MISS: (
        "say which factor keeps a target from starting from the cache",
        _why_miss_arguments,
        lambda options, cache: _why_miss(options),
    ),
    "verify": ("read every entry and check it", _nothing, _verify),
    "gc": ("remove what nobody used for longest, and litter", _gc_arguments, _gc),
    "crashes": (
        "list what took down processes of this machine and is left out since",
        _crashes_arguments,
        _crashes,
    ),
    "pack": ("write a plan and all that it needs to a file", _pack_arguments, _pack),
    "unpack": ("store the entries of such a file", _unpack_arguments, _unpack),
}
"""Action -> what it is for, its arguments, and what runs."""
