"""Packs: entries in one file, checked as on a load, with no path that could be trusted."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from intarsia.cache import Entry, key_of
from intarsia.cache.entry import encode_entry
from intarsia.cache.pack import pack, unpack
from intarsia.errors import CacheError
from tests.stores import FACTORS, KEY, PAYLOAD, files_of, opened

PLAN = {"model": "m"}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A pack of a plan and the piece that it uses."""
    one = opened(tmp_path / "here")
    one.save()
    one.save({"n": "not used"})
    one.cache.save("plan", PLAN, b"the plan", meta={"uses": [KEY]})
    file = tmp_path / "plan.pack"
    assert pack(one.cache, [key_of("plan", PLAN)], str(file)) == [key_of("plan", PLAN), KEY]
    return file


def test_pack_brings_a_plan_and_what_it_uses(packed: Path, tmp_path: Path) -> None:
    there = opened(tmp_path / "there")
    done = unpack(there.cache, str(packed))
    assert done.stored == (key_of("plan", PLAN), KEY)
    assert there.load() == PAYLOAD
    assert there.cache.load("plan", PLAN, lambda entry: bytes(entry.payload)) == b"the plan"
    assert there.load({"n": "not used"}) is None
    again = unpack(there.cache, str(packed))
    assert (again.stored, again.present) == ((), done.stored)


def test_everything_that_is_used_is_packed_once_however_deep(tmp_path: Path) -> None:
    one = opened(tmp_path / "here")
    one.save()
    names = {n: key_of("piece", {"n": n}) for n in ("a", "b", "c")}
    for n, uses in (("a", [names["b"], KEY, names["c"]]), ("b", [KEY]), ("c", [names["b"]])):
        one.cache.save("piece", {"n": n}, b"x", meta={"uses": uses})
    packed = pack(one.cache, [names["a"]], str(tmp_path / "p"))
    assert sorted(packed) == sorted([*names.values(), KEY])
    assert packed[0] == names["a"]


@pytest.mark.parametrize("cut", [0, 7, 11, 15, 100, -1, -9000])
def test_pack_that_is_cut_short_stores_nothing(packed: Path, tmp_path: Path, cut: int) -> None:
    packed.write_bytes(packed.read_bytes()[:cut])
    there = opened(tmp_path / "there")
    with pytest.raises(CacheError, match="cannot be unpacked"):
        unpack(there.cache, str(packed))
    assert not (tmp_path / "there").exists()


def test_pack_that_is_longer_than_it_says_stores_nothing(packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes() + b"x")
    with pytest.raises(CacheError, match="longer than it says"):
        unpack(opened(tmp_path / "there").cache, str(packed))


def test_pack_with_any_flipped_bit_stores_nothing(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    there = opened(tmp_path / "there")
    for place in range(0, len(whole), 53):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        packed.write_bytes(flipped)
        with pytest.raises(CacheError, match="cannot be unpacked"):
            unpack(there.cache, str(packed))
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("key", ["../../../../tmp/x", "/etc/cron.d/x", "ab/../../x", "", "ab"])
def test_key_that_is_a_path_is_refused(tmp_path: Path, key: str) -> None:
    data = encode_entry(Entry("piece", key, FACTORS, {}, b"x"))
    file = tmp_path / "hostile.pack"
    file.write_bytes(struct.pack("<8sIQ", b"INTARSP\x01", 1, len(data)) + data)
    there = opened(tmp_path / "there")
    with pytest.raises(CacheError, match="has no key"):
        unpack(there.cache, str(file))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile.pack"]


def test_pack_without_the_secret_is_refused_where_one_is_set(packed: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    key.chmod(0o600)
    with pytest.raises(CacheError, match="not signed"):
        unpack(opened(tmp_path / "there", key_file=str(key)).cache, str(packed))


def test_missing_or_bad_entry_is_named_and_the_old_file_stays(packed: Path, tmp_path: Path) -> None:
    before = packed.read_bytes()
    one = opened(tmp_path / "here")
    (tmp_path / "here" / KEY[:2] / KEY).write_bytes(b"x")
    with pytest.raises(CacheError, match=f"{KEY[:12]} cannot be packed: in .* cut short"):
        pack(one.cache, [key_of("plan", PLAN)], str(packed))
    with pytest.raises(CacheError, match="it is in no store"):
        pack(one.cache, ["ab" * 32], str(packed))
    assert packed.read_bytes() == before
    assert [name for name in files_of(tmp_path) if name.endswith(".tmp")] == []


def test_file_that_cannot_be_read_or_written_is_named(packed: Path, tmp_path: Path) -> None:
    one = opened(tmp_path / "here")
    with pytest.raises(CacheError, match="No such file"):
        pack(one.cache, [KEY], str(tmp_path / "none" / "x"))
    with pytest.raises(CacheError, match="No such file"):
        unpack(one.cache, str(tmp_path / "none"))
