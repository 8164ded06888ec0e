"""F2 and F3: a truncated entry, and one with a flipped bit, at every place: found before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.errors import CacheError
from tests.stores import KEY, PAYLOAD, entry_file, files_of, opened, works_again

pytestmark = pytest.mark.timeout(120)

SECRET = b"0123456789abcdef"


def damaged(root: Path, data: bytes, **options: object) -> None:
    """Check all that a damaged entry must lead to."""
    entry_file(root).parent.mkdir(mode=0o700, exist_ok=True)
    entry_file(root).write_bytes(data)
    entry_file(root).chmod(0o600)
    one = opened(root, **options)
    seen: list[object] = []
    assert one.load(use=seen.append) is None
    assert seen == [], "a damaged entry was used"
    (warning,) = one.warnings
    assert KEY[:12] in warning
    assert "moved aside" in warning
    assert one.cache.counters["quarantined"] == 1
    assert all(name.startswith("bad/") for name in files_of(root))
    assert one.save() is True
    assert opened(root, **options).load() == PAYLOAD


@pytest.fixture
def root(tmp_path: Path) -> Path:
    opened(tmp_path / "cache").save()
    return tmp_path / "cache"


@pytest.mark.parametrize("cut", ["nothing", "one byte", "half", "all but one", "one more"])
def test_truncated_entry_is_moved_aside_and_made_anew(root: Path, cut: str) -> None:
    whole = entry_file(root).read_bytes()
    size = {"nothing": 0, "one byte": 1, "half": len(whole) // 2, "all but one": len(whole) - 1}
    damaged(root, (whole + b"x")[: size.get(cut, len(whole) + 1)])
    assert works_again(root)


def test_truncated_entry_is_an_error_where_strict_and_the_next_run_works(root: Path) -> None:
    entry_file(root).write_bytes(entry_file(root).read_bytes()[:-1])
    with pytest.raises(CacheError, match="bytes instead of") as caught:
        opened(root, strict=True).load()
    assert caught.value.subject == KEY
    assert works_again(root)


@pytest.mark.parametrize("signed", [False, True])
def test_flipped_bit_at_200_places_is_never_used(root: Path, tmp_path: Path, signed: bool) -> None:
    options = {}
    if signed:
        file = tmp_path / "key"
        file.write_bytes(SECRET)
        file.chmod(0o600)
        options = {"key_file": str(file)}
        entry_file(root).unlink()
        opened(root, **options).save()
    whole = entry_file(root).read_bytes()
    header = len(whole) - len(PAYLOAD)
    places = sorted({n * (header - 1) // 99 for n in range(100)})
    places += [header + n * (len(PAYLOAD) - 1) // 99 for n in range(200 - len(places))]
    assert len(set(places)) == 200
    for number, place in enumerate(places):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << number % 8
        damaged(root, bytes(flipped), **options)
    entry_file(root).unlink()
    assert works_again(root)
