"""`split-by = COMPILER`: the graph stays whole, and the compiler cuts its own schedule at operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intarsia.errors import ConfigError

if TYPE_CHECKING:
    from intarsia.config import Config
    from intarsia.host import Host

__all__ = ["check_split_by", "partition_ops"]


def check_split_by(config: Config, host: Host, device_type: str) -> None:
    """Refuse what a compiler that cuts its own schedule cannot do.

    Raises:
        ConfigError: the compiler cannot, is not asked first, or a rule is no operator's name.
    """
    name = config.split_by
    if name == "fx":
        return
    able = host.compiler(name).capabilities.partitions
    if device_type not in able:
        raise _error(name, f"{name} partitions on {', '.join(able) or 'no device'}, and the model is on "
                     f"{device_type}", "Use split-by = \"fx\".")  # fmt: skip
    if config.compilers is not None and config.compilers[:1] != (name,):
        raise _error(
            name, f"compilers asks {config.compilers[0]} first", f"Put {name} first there."
        )
    for key, rules in (
        ("split-rule", config.split_rule),
        ("split-by-support", config.split_by_support),
    ):
        if rules:
            raise _error(name, f"{key} = {rules[0]!r} is no operator's name",
                         "Name operators in split-at, or use split-by = \"fx\".")  # fmt: skip
    partition_ops(config)


def partition_ops(config: Config) -> tuple[str, ...]:
    """Return the operators to cut at, as "ns::op" or "ns::op.overload".

    Raises:
        ConfigError: a rule is something else.
    """
    return tuple(_name(rule, config.split_by) for rule in config.split_at)


def _name(rule: Any, by: str) -> str:
    text = rule if isinstance(rule, str) else _of_object(rule)
    if "::" not in text or text.startswith("tag:"):
        raise _error(by, f"the rule {text or rule!r} is no operator's name, and {by} cuts at those alone",
                     'Write "ns::op", or use split-by = "fx".')  # fmt: skip
    return text


def _of_object(rule: Any) -> str:
    if hasattr(rule, "overloadpacket"):
        return str(rule.name())
    if hasattr(rule, "overloads"):  # a packet, whose text is "ns.op"
        namespace, _, name = str(rule).partition(".")
        return f"{namespace}::{name}"
    return ""


def _error(by: str, why: str, next_step: str) -> ConfigError:
    return ConfigError(
        f'split-by = "{by}" cannot be served', why=why, next_step=next_step, subject="split_by"
    )
