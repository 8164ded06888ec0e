"""Keys and entries: the same factors find the same entry, and no other bytes pass as one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.cache import BadEntry, Entry, differences, key_of
from intarsia.cache.entry import WrongSecret, decode_entry, encode_entry, read_header
from intarsia.cache.key import check_key, shorten

FACTORS = st.dictionaries(st.text(), st.text(), max_size=6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
SECRETS = st.none() | st.binary(min_size=16, max_size=40)


@given(FACTORS, st.randoms())
def test_order_of_the_factors_does_not_change_the_key(factors: dict[str, str], chance) -> None:
    items = list(factors.items())
    chance.shuffle(items)
    assert key_of("piece", dict(items)) == key_of("piece", factors)


@given(FACTORS, FACTORS)
def test_keys_are_equal_only_where_the_factors_are(
    ours: dict[str, str], theirs: dict[str, str]
) -> None:
    assert (key_of("piece", ours) == key_of("piece", theirs)) == (ours == theirs)
    assert key_of("piece", ours) != key_of("plan", ours)


def test_names_and_values_do_not_run_into_each_other() -> None:
    assert key_of("k", {"a": "b", "c": "d"}) != key_of("k", {"a": 'b","c":"d'})
    assert key_of("k", {"ab": "c"}) != key_of("k", {"a": "bc"})


def test_key_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from intarsia.cache import key_of; print(key_of('p', {'b': '2', 'a': 'x', 'ü': '\\ud800'}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={**_environment(), "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {key_of("p", {"b": "2", "a": "x", "ü": "\ud800"})}


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@given(FACTORS, FACTORS)
def test_differences_are_empty_only_for_equal_factors_and_sorted(
    ours: dict[str, str], theirs: dict[str, str]
) -> None:
    found = differences(ours, theirs)
    assert (not found) == (ours == theirs)
    assert [item.name for item in found] == sorted(item.name for item in found)
    assert all(
        item.ours == ours.get(item.name) and item.theirs == theirs.get(item.name) for item in found
    )


def test_difference_names_both_values_and_what_is_missing() -> None:
    (one,) = differences({"torch": "2.13"}, {})
    assert str(one) == 'torch is "2.13" here and not given there'
    assert len(shorten("x" * 10_000)) < 60


@pytest.mark.parametrize(
    "bad", ["", "abc", "../../etc/passwd", "A" * 64, "a" * 129, "a" * 63 + "/"]
)
def test_what_could_leave_the_folder_is_no_key(bad: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        check_key(bad)


@given(FACTORS, st.dictionaries(st.text(), PLAIN, max_size=3), st.binary(max_size=300), SECRETS)
def test_entry_comes_back_as_it_was(
    factors: dict[str, str], meta: dict, payload: bytes, secret: bytes | None
) -> None:
    entry = Entry("piece", key_of("piece", factors), factors, meta, payload)
    data = encode_entry(entry, secret)
    again = decode_entry(data, key=entry.key, secret=secret)
    assert (again.kind, again.key, again.factors) == (entry.kind, entry.key, factors)
    assert again.meta == meta
    assert bytes(again.payload) == payload


@given(st.binary(max_size=60), SECRETS, st.data())
def test_no_flipped_bit_passes(payload: bytes, secret: bytes | None, data: st.DataObject) -> None:
    entry = Entry("piece", key_of("piece", {"a": "b"}), {"a": "b"}, {"n": 1}, payload)
    whole = bytearray(encode_entry(entry, secret))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadEntry):
        decode_entry(bytes(whole), key=entry.key, secret=secret)


@given(st.binary(max_size=60), st.integers(1, 400))
def test_no_truncated_or_longer_entry_passes(payload: bytes, count: int) -> None:
    entry = Entry("piece", key_of("piece", {}), {}, {}, payload)
    whole = encode_entry(entry)
    for damaged in (whole[:-count], whole + b"x" * count):
        with pytest.raises(BadEntry):
            decode_entry(damaged, key=entry.key)


@given(st.binary(max_size=300))
def test_noise_is_a_bad_entry_and_nothing_else(noise: bytes) -> None:
    for data in (noise, encode_entry(Entry("p", "a" * 64, {}))[:16] + noise):
        with pytest.raises(BadEntry):
            decode_entry(data, key="a" * 64)
        with contextlib.suppress(BadEntry):
            read_header(data)


def test_entry_of_another_key_does_not_pass() -> None:
    data = encode_entry(Entry("piece", "a" * 64, {}))
    with pytest.raises(BadEntry, match="another key"):
        decode_entry(data, key="b" * 64)


@pytest.mark.parametrize("signed_with", [None, b"another secret, as long"])
def test_entry_without_the_right_signature_does_not_pass(signed_with: bytes | None) -> None:
    data = encode_entry(Entry("piece", "a" * 64, {}), signed_with)
    with pytest.raises(WrongSecret, match="a secret is set"):
        decode_entry(data, key="a" * 64, secret=b"the secret, 16 bytes")


def test_header_is_read_from_the_first_bytes() -> None:
    data = encode_entry(Entry("piece", "a" * 64, {"f": "v"}, {"m": [1]}, b"p" * 5000), b"s" * 16)
    header = read_header(data[:400])
    assert header is not None
    assert (header.kind, header.key, header.factors, header.meta) == (
        "piece",
        "a" * 64,
        {"f": "v"},
        {"m": [1]},
    )
    assert (header.payload_size, header.signed) == (5000, True)
    assert read_header(data[:90]) is None


def test_header_that_would_exhaust_the_parser_is_a_bad_entry() -> None:
    data = encode_entry(Entry("piece", "a" * 64, {}))
    deep = b"[" * 200_000
    forged = data[:8] + len(deep).to_bytes(4, "little") + data[12:84] + deep
    with pytest.raises(BadEntry, match="header"):
        read_header(forged)


def test_factors_that_are_not_text_are_a_bad_header() -> None:
    for fields in ({"kind": 1}, {"factors": {"a": 1}}, {"factors": []}, {"key": None}):
        good = {"kind": "p", "key": "a" * 64, "factors": {}, "meta": {}}
        header = json.dumps({**good, **fields}).encode()
        data = encode_entry(Entry("p", "a" * 64, {}))
        forged = data[:8] + len(header).to_bytes(4, "little") + data[12:84] + header
        with pytest.raises(BadEntry, match="header"):
            read_header(forged)
