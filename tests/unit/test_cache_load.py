"""The one loader path: an entry is used after every check, or it is moved aside once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from intarsia.cache import BadEntry, Entry, Unusable, key_of
from intarsia.cache.entry import encode_entry
from intarsia.errors import CacheError
from tests.stores import FACTORS, KEY, PAYLOAD, entry_file, files_of, opened, ran


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_saved_payload_comes_back_in_a_new_cache(root: Path) -> None:
    one = opened(root)
    assert one.load() is None
    assert one.save() is True
    two = opened(root)
    assert two.load() == PAYLOAD
    assert (one.cache.counters["misses"], one.cache.counters["saves"]) == (1, 1)
    assert two.cache.counters == {**dict.fromkeys(two.cache.counters, 0), "hits": 1}
    assert one.warnings + two.warnings == []


def test_saved_payload_comes_back_in_another_process(root: Path) -> None:
    opened(root).save()
    code = (
        "import sys; from intarsia.cache import open_cache\n"
        "cache = open_cache(sys.argv[1])\n"
        f"print(len(cache.load('piece', {FACTORS!r}, lambda entry: bytes(entry.payload))))\n"
        "print('torch' in sys.modules)"
    )
    assert ran(code, root).split() == [str(len(PAYLOAD)), "False"]


def test_one_entry_is_one_file_and_only_ours(root: Path) -> None:
    before = os.umask(0)
    try:
        one = opened(root)
        one.load()
        one.save()
        opened(root).load()
    finally:
        os.umask(before)
    assert files_of(root) == [f"{KEY[:2]}/{KEY}"]
    assert [path.stat().st_mode & 0o777 for path in (root, root / KEY[:2], entry_file(root))] == [
        0o700, 0o700, 0o600,
    ]  # fmt: skip


def test_second_publisher_leaves_the_first_entry(root: Path) -> None:
    one, two = opened(root), opened(root)
    assert one.save() is True
    inode = entry_file(root).stat().st_ino
    assert two.save(payload=b"other") is False
    assert entry_file(root).stat().st_ino == inode
    assert two.cache.counters["skipped_saves"] == 0
    assert opened(root).load() == PAYLOAD


def test_factors_decide_and_each_alone_misses(root: Path) -> None:
    one = opened(root)
    one.save()
    for name in FACTORS:
        assert one.load({**FACTORS, name: "changed"}) is None
    assert one.load({**FACTORS, "extra": ""}) is None
    assert one.load() == PAYLOAD


@pytest.mark.parametrize("where", ["kind", "key", "factors"])
def test_entry_of_something_else_at_this_key_is_not_used(root: Path, where: str) -> None:
    other = {
        "kind": Entry("plan", KEY, FACTORS, {}, PAYLOAD),
        "key": Entry("piece", "ab" * 32, FACTORS, {}, PAYLOAD),
        "factors": Entry("piece", KEY, {**FACTORS, "torch": "2.12"}, {}, PAYLOAD),
    }[where]
    one = opened(root)
    one.save()
    entry_file(root).write_bytes(encode_entry(other))
    seen: list[Any] = []
    assert one.load(use=seen.append) is None
    assert seen == []
    (aside,) = files_of(root)
    assert aside.startswith(f"bad/{KEY}")
    (warning,) = one.warnings
    assert KEY[:12] in warning
    assert "moved aside" in warning


def fails(entry: Entry) -> None:
    raise RuntimeError("zero pieces")


def test_exception_of_the_user_moves_the_entry_aside_once_and_the_next_save_replaces_it(
    root: Path,
) -> None:
    one = opened(root)
    one.save()
    assert one.load(use=fails) is None
    assert one.load(use=fails) is None
    (warning,) = one.warnings
    assert "RuntimeError: zero pieces" in warning
    assert one.cache.counters["quarantined"] == 1
    (aside,) = files_of(root)
    assert aside.startswith(f"bad/{KEY}")
    assert one.save() is True
    assert one.load() == PAYLOAD


def test_strict_raises_for_a_bad_entry_and_the_next_run_works(root: Path) -> None:
    opened(root).save()
    strict = opened(root, strict=True)
    with pytest.raises(CacheError, match="zero pieces") as caught:
        strict.load(use=fails)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.subject == KEY
    again = opened(root, strict=True)
    assert again.load() is None
    assert again.save() is True


def unusable(entry: Entry) -> None:
    raise Unusable("device sm_90 here, sm_80 there")


@pytest.mark.parametrize("strict", [False, True])
def test_entry_that_is_fine_elsewhere_stays_and_is_noted(root: Path, strict: bool) -> None:
    opened(root).save()
    one = opened(root, strict=strict)
    assert one.load(use=unusable) is None
    assert one.cache.counters["misses"] == 1
    assert one.warnings == []
    (note,) = one.notes
    assert "device sm_90 here" in note
    assert opened(root).load() == PAYLOAD


def test_full_memory_says_nothing_about_the_entry(root: Path) -> None:
    def full(entry: Entry) -> None:
        raise MemoryError

    one = opened(root)
    one.save()
    with pytest.raises(MemoryError):
        one.load(use=full)
    assert one.load() == PAYLOAD


def test_bad_entries_that_are_kept_are_few(root: Path) -> None:
    one = opened(root)
    for number in range(40):
        factors = {"graph": str(number)}
        one.save(factors)
        one.load(factors, use=fails)
    assert len(os.listdir(root / "bad")) == 16


def test_a_good_entry_that_took_a_bad_ones_place_is_not_moved_aside(root: Path) -> None:
    one = opened(root)
    one.save()

    def replaced_meanwhile(entry: Entry) -> None:
        entry_file(root).unlink()
        assert opened(root).cache.save("piece", FACTORS, b"the good one")
        raise RuntimeError("the bytes that we had were bad")

    assert one.load(use=replaced_meanwhile) is None
    assert opened(root).load() == b"the good one"


def test_given_key_finds_the_entry_and_the_factors_are_checked_still(root: Path) -> None:
    one = opened(root)
    key = key_of("look-up", {"model": "m"})
    assert one.cache.save("plan", FACTORS, b"p", key=key)
    assert one.cache.load("plan", FACTORS, lambda entry: bytes(entry.payload), key=key) == b"p"
    assert one.cache.load("plan", {}, fails, key=key) is None
    assert "was made for something else" in one.warnings[0]
    with pytest.raises(ValueError, match="hexadecimal"):
        one.cache.load("plan", {}, fails, key="../../etc/passwd")


def test_miss_names_the_factor_that_differs_from_the_nearest_entry(root: Path) -> None:
    one = opened(root)
    assert one.cache.explain_miss("piece", FACTORS) == "no entry yet"
    one.save({**FACTORS, "graph": "g2", "device": "cuda"})
    one.save({**FACTORS, "torch": "2.12"})
    one.cache.save("plan", FACTORS, b"another kind")
    told = one.cache.explain_miss("piece", FACTORS)
    assert 'torch is "2.13" here and "2.12" there' in told
    assert "graph" not in told
    near = one.cache.nearest("piece", FACTORS)
    assert near is not None
    assert [item.name for item in near.differences] == ["torch"]


def test_nearest_looks_at_the_entries_that_were_used_last(root: Path) -> None:
    one = opened(root)
    for number in range(6):
        factors = {"graph": str(number), "torch": "2.13"}
        one.save(factors)
        os.utime(entry_file(root, key_of("piece", factors)), (number, number))
    near = one.cache.nearest("piece", {"graph": "0", "torch": "2.12"}, limit=2)
    assert near is not None
    assert near.key in {key_of("piece", {"graph": n, "torch": "2.13"}) for n in ("4", "5")}


def test_long_values_do_not_fill_the_log(root: Path) -> None:
    one = opened(root)
    one.save({f"f{n}": "x" * 5000 for n in range(20)})
    told = one.cache.explain_miss("piece", {f"f{n}": "y" * 5000 for n in range(20)})
    assert len(told) < 600
    assert "17 more factors differ" in told


def test_header_of_any_length_can_be_explained(root: Path) -> None:
    one = opened(root)
    one.save({**FACTORS, "graph": "x" * 100_000})
    near = opened(root).cache.nearest("piece", FACTORS)
    assert near is not None
    assert [item.name for item in near.differences] == ["graph"]


def test_unusable_store_is_not_called_empty(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert "no store" in opened(tmp_path).cache.explain_miss("piece", FACTORS)


def test_moved_cache_hits_from_another_directory_and_home(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened(root).save()
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("UNDECLARED", "changed")
    assert opened("elsewhere").load() == PAYLOAD


def test_going_back_to_an_older_version_hits_again(root: Path) -> None:
    one = opened(root)
    one.save()
    assert one.load({**FACTORS, "torch": "2.14"}) is None
    assert one.save({**FACTORS, "torch": "2.14"}, b"newer") is True
    assert one.load() == PAYLOAD
    assert one.load({**FACTORS, "torch": "2.14"}) == b"newer"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_file_system_without_hard_links_keeps_entries_too(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_links(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    one = opened(root)
    assert one.save() is True
    assert one.save(payload=b"other") is False
    assert one.load() == PAYLOAD
    assert files_of(root) == [f"{KEY[:2]}/{KEY}"]
    assert one.warnings == []


def test_link_that_a_server_repeated_counts_as_ours(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def twice(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        real(*args, **kwargs)

    monkeypatch.setattr(os, "link", twice)
    assert opened(root).save() is True
    assert files_of(root) == [f"{KEY[:2]}/{KEY}"]


def test_threads_share_a_cache(root: Path) -> None:
    one = opened(root)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                factors = {"turn": str(turn)}
                found = one.load(factors)
                if found is None:
                    one.save(factors)
                else:
                    assert found == PAYLOAD
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert one.cache.counters["saves"] == 20
    assert one.cache.counters["hits"] + one.cache.counters["misses"] == 160


def test_planted_file_types_are_bad_entries(root: Path) -> None:
    one = opened(root)
    one.save()
    file = entry_file(root)
    target = root.parent / "target"
    target.write_bytes(file.read_bytes())
    for plant in (lambda: file.symlink_to(target), lambda: os.mkfifo(file), file.mkdir):
        file.unlink()
        plant()
        again = opened(root)
        assert again.load() is None
        assert len(again.warnings) == 1, again.warnings
        assert again.save() is True
    assert target.exists()


def test_error_of_the_cache_is_an_error_of_intarsia() -> None:
    assert issubclass(BadEntry, CacheError)
    assert issubclass(Unusable, CacheError)
