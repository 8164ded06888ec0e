"""F12: the file of an entry is deleted or replaced between two uses: a miss, and it is made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from intarsia.cache import Entry
from intarsia.cache.entry import encode_entry
from tests.stores import FACTORS, KEY, PAYLOAD, entry_file, opened, works_again

pytestmark = pytest.mark.timeout(60)

OTHER = Entry("piece", "cd" * 32, {"graph": "other"}, {}, b"other")


def of_another_version(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[7] += 1
    file.write_bytes(data)


def of_another_key(file: Path) -> None:
    file.write_bytes(encode_entry(OTHER))


def of_other_factors(file: Path) -> None:
    file.write_bytes(encode_entry(Entry("piece", KEY, {**FACTORS, "torch": "2.12"}, {}, b"other")))


def something_else(file: Path) -> None:
    file.write_bytes(b"\x80\x04N.")


@pytest.mark.parametrize(
    "replace", [of_another_version, of_another_key, of_other_factors, something_else]
)
def test_replaced_entry_is_a_miss_and_made_anew(
    tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    one = opened(tmp_path / "c")
    one.save()
    assert one.load() == PAYLOAD
    replace(entry_file(tmp_path / "c"))
    assert one.load() is None
    assert len(one.warnings) == 1
    assert one.save() is True
    assert one.load() == PAYLOAD
    assert works_again(tmp_path / "c")


def test_deleted_entry_is_a_miss_and_made_anew(tmp_path: Path) -> None:
    one = opened(tmp_path / "c")
    one.save()
    entry_file(tmp_path / "c").unlink()
    assert one.load() is None
    assert one.warnings == []
    assert one.cache.explain_miss("piece", FACTORS) == "no entry yet"
    assert one.save() is True
    assert works_again(tmp_path / "c")
