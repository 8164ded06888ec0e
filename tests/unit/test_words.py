"""Records of plugins refuse words that do not exist, where the record is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from intarsia.errors import PluginError
from intarsia.interfaces import Capabilities, CompilerSpec, Cut, OpSafety, PassSpec


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PassSpec("p", "1", "pice", "a:b"), 'PassSpec "p": stage is \'pice\'; did you mean "piece"?'),
        (lambda: PassSpec("p", "1", ["piece"], "a:b"), "stage is ['piece']; did you mean "),
        (lambda: OpSafety("a::b", "unsafe"), "OpSafety \"a::b\": safety is 'unsafe'; "),
        (lambda: Capabilities(weights="baked"), 'Capabilities: weights is \'baked\'; did you mean "bake"?'),
        (lambda: Cut("ops"), 'Cut: kind is \'ops\'; did you mean "op"?'),
        (lambda: CompilerSpec("c", "1", "a:b", form="aten"), "CompilerSpec \"c\": form is 'aten'; "),
        (lambda: CompilerSpec("c", "1", "a:b", tiers=("quick", "fast")), "tiers is 'fast'; Known: "),
        (lambda: CompilerSpec("c", "1", "a:b", tiers="quick"), "tiers is 'quick': it must be a tuple of "),
        (lambda: CompilerSpec("c", "1", "a:b", tiers=()), "tiers is (): it must be a tuple of "),
    ],
)  # fmt: skip
def test_a_wrong_word_is_an_error_with_the_record_and_the_words(
    make: Callable[[], Any], told: str
) -> None:
    with pytest.raises(PluginError, match=re.escape(told)):
        make()
