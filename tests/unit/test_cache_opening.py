"""From the settings to a cache: where it is, what it may not be, and what costs nothing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import fsspec
import platformdirs
import pytest

from intarsia.cache import open_cache
from intarsia.cache.opening import read_secret, user_root
from intarsia.errors import ConfigError
from intarsia.interfaces import StoreSpec, StoreStat
from tests.stores import FACTORS, KEY, PAYLOAD, entry_file, opened, ran

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory of one test; not created."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "intarsia"


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """The URL of an empty store in this process's memory."""
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/intarsia"


def names(setting: object) -> list[str]:
    return [place.name for place in opened(setting).cache.places]


def test_cache_off_is_none_and_true_is_the_users_directory(home: Path) -> None:
    assert open_cache(False) is None
    assert names(True) == [str(home)]
    assert user_root() == str(home)
    assert not home.exists(), "opening a cache creates nothing"


def test_home_that_stays_a_tilde_becomes_no_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: f"~/.cache/{name}")
    one = opened(True)
    assert one.save() is False
    assert len(one.warnings) == 1
    assert list(tmp_path.iterdir()) == []


def test_cache_off_makes_no_file_system_access() -> None:
    code = (
        "import sys\n"
        "from intarsia.cache import open_cache\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append((event, args)))\n"
        "cache = open_cache(False, key_file='/etc/shadow')\n"
        "print(cache, [event for event, _ in seen])\n"
    )
    assert ran(code) == "None []"
    # and the hook does hear of a cache that is on
    code = code.replace(
        "open_cache(False, key_file='/etc/shadow')", "open_cache('/x').load('p', {}, 0)"
    )
    assert "'open'" in ran(code)


def test_path_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert names("here/cache") == [str(tmp_path / "here/cache")]
    assert names("~/c") == [str(tmp_path / "me/c")]
    assert names(str(tmp_path) + "/a/") == [str(tmp_path / "a")]


def test_url_gets_the_users_directory_in_front_and_a_list_is_taken_as_it_is(
    home: Path, tmp_path: Path, bucket: str
) -> None:
    assert names(bucket) == [str(home), bucket]
    assert names((bucket,)) == [bucket]
    assert names((str(tmp_path / "b"), bucket)) == [str(tmp_path / "b"), bucket]


def test_file_url_is_a_directory_with_all_its_checks(home: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    one = opened(f"file://{shared}")
    one.save()
    assert entry_file(shared).exists()
    assert entry_file(home).exists()
    shared.chmod(0o777)
    assert opened((f"file://{shared}",)).load() is None


def test_remote_entry_is_copied_into_the_directory_in_front(home: Path, bucket: str) -> None:
    opened((bucket,)).save()
    one = opened(bucket)
    assert one.load() == PAYLOAD
    assert entry_file(home).exists()
    fsspec.filesystem("memory").store.clear()
    assert opened(bucket).load() == PAYLOAD


def test_save_reaches_every_store_and_one_that_fails_stops_no_other(
    tmp_path: Path, bucket: str
) -> None:
    broken = tmp_path / "file"
    broken.write_text("not a directory")
    one = opened((str(broken), bucket, str(tmp_path / "good")))
    assert one.save() is True
    assert opened((bucket,)).load() == PAYLOAD
    assert opened(tmp_path / "good").load() == PAYLOAD
    assert len(one.warnings) == 1
    assert str(broken) in one.warnings[0]


def test_bad_entry_in_front_is_replaced_from_behind(home: Path, bucket: str) -> None:
    opened(bucket).save()
    entry_file(home).write_bytes(b"x")
    one = opened(bucket)
    assert one.load() == PAYLOAD
    assert len(one.warnings) == 1
    assert opened(home).load() == PAYLOAD


def test_damaged_remote_entry_is_removed_and_published_anew(bucket: str) -> None:
    memory = fsspec.filesystem("memory")
    opened((bucket,)).save()
    (path,) = memory.find("/bucket")
    memory.pipe_file(path, memory.cat_file(path)[:-1])
    one = opened((bucket,))
    assert one.load() is None
    assert "it was removed" in one.warnings[0]
    assert one.save() is True
    assert opened((bucket,)).load() == PAYLOAD


def test_one_machines_trouble_removes_nothing_that_is_shared(bucket: str) -> None:
    def no_toolchain(entry: object) -> None:
        raise OSError("g++ is missing")

    opened((bucket,)).save()
    one = opened((bucket,))
    assert one.load(use=no_toolchain) is None
    assert one.load(use=no_toolchain) is None
    assert len(one.warnings) == 1
    assert opened((bucket,)).load() == PAYLOAD


def test_remote_store_answers_as_the_protocol_says(bucket: str) -> None:
    from intarsia.cache.remote import RemoteStore

    store = RemoteStore(bucket)
    assert (store.get(KEY), store.stat(KEY), list(store.list()), store.head(KEY, 4)) == (
        None,
        None,
        [],
        None,
    )
    assert store.put_if_absent(KEY, b"12345") is True
    assert store.put_if_absent(KEY, b"other") is False
    stat = store.stat(KEY)
    assert stat is not None
    assert stat.size == 5
    assert (store.get(KEY), store.head(KEY, 4), list(store.list())) == (b"12345", b"1234", [KEY])
    store.delete(KEY)
    store.delete(KEY)
    assert store.get(KEY) is None


def test_store_without_whole_writes_gets_the_file_under_another_name_first(tmp_path: Path) -> None:
    from intarsia.cache.remote import RemoteStore

    store = RemoteStore(f"file://{tmp_path}/far", {"auto_mkdir": True})
    assert store.put_if_absent(KEY, b"12345") is True
    assert store.get(KEY) == b"12345"
    assert os.listdir(tmp_path / "far" / KEY[:2]) == [KEY]


def test_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    if importlib.util.find_spec("s3fs") is not None:
        pytest.skip("s3fs is installed")
    with pytest.raises(ConfigError, match=r"s3fs.*pip install 'intarsia\[s3\]'"):
        open_cache("s3://bucket/x")
    with pytest.raises(ConfigError, match="sshfs|paramiko"):
        open_cache("sftp://host/x")


def test_unknown_scheme_is_named() -> None:
    with pytest.raises(ConfigError, match="acme://"):
        open_cache("acme://x")


class Shelf:
    """A plugin's store: a dict."""

    def __init__(self, url: str, options: object) -> None:
        self.url = url
        self.held: dict[str, bytes] = {}

    def stat(self, key: str) -> StoreStat | None:
        return StoreStat(len(self.held[key]), 0.0) if key in self.held else None

    def get(self, key: str) -> bytes | None:
        return self.held.get(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.held.setdefault(key, data) is data

    def list(self) -> list[str]:
        return list(self.held)

    def delete(self, key: str) -> None:
        self.held.pop(key, None)


def test_plugin_brings_a_store_by_scheme(home: Path) -> None:
    def stores(scheme: str) -> StoreSpec:
        if scheme != "acme":
            raise ConfigError("nobody brings it")
        return StoreSpec("acme", Shelf)

    one = opened(("acme://far",), stores=stores)
    assert one.save() is True
    assert one.load() == PAYLOAD
    near = one.cache.nearest("piece", {**FACTORS, "torch": "2.12"})
    assert near is not None
    assert near.key == KEY
    with pytest.raises(ConfigError, match="acme2"):
        opened(("acme2://far",), stores=stores)


class Broken(Shelf):
    """A plugin's store whose network is down."""

    asked = 0

    def get(self, key: str) -> bytes | None:
        Broken.asked += 1
        raise RuntimeError("no route to host")

    put_if_absent = get  # type: ignore[assignment]


def test_store_that_keeps_failing_is_left_alone_after_one_warning() -> None:
    one = opened(("acme://far",), stores=lambda scheme: StoreSpec(scheme, Broken))
    Broken.asked = 0
    for number in range(20):
        assert one.load({"n": str(number)}) is None
    assert len(one.warnings) == 1
    assert Broken.asked == 3


# --------------------------------------------------------------------------------------- secret


def key_file(folder: Path, secret: bytes = SECRET, mode: int = 0o600) -> str:
    file = folder / "cache.key"
    file.write_bytes(secret)
    file.chmod(mode)
    return str(file)


def test_entry_signed_with_the_secret_is_used_and_others_are_not(tmp_path: Path) -> None:
    root, secret = tmp_path / "c", key_file(tmp_path)
    opened(root).save()
    signing = opened(root, key_file=secret)
    assert signing.load() is None
    assert "not signed, and a secret is set" in signing.warnings[0]
    assert signing.save() is True
    assert opened(root, key_file=secret).load() == PAYLOAD
    Path(secret).write_bytes(SECRET[::-1])
    assert opened(root, key_file=secret).load() is None


def test_entry_of_another_secret_stays_in_a_shared_store(tmp_path: Path, bucket: str) -> None:
    opened((bucket,)).save()
    one = opened((bucket,), key_file=key_file(tmp_path))
    assert one.load() is None
    assert "the store is shared" in one.warnings[0]
    assert opened((bucket,)).load() == PAYLOAD


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"{mode:04o}"):
        open_cache(str(tmp_path / "c"), key_file=key_file(tmp_path, mode=mode))


def test_secret_that_is_missing_short_or_somebody_elses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="5 bytes"):
        read_secret(key_file(tmp_path, b"short\n"))
    with pytest.raises(ConfigError, match="not a regular file"):
        read_secret(str(tmp_path))
    if os.geteuid() == 0:
        file = key_file(tmp_path)
        os.chown(file, 12345, -1)
        with pytest.raises(ConfigError, match="uid 12345"):
            read_secret(file)


def test_importing_the_cache_imports_nothing_heavy() -> None:
    code = (
        "import sys, intarsia.cache\n"
        "heavy = {'torch', 'fsspec', 'sympy', 'platformdirs', 'filelock', 'pluggy', 'pickle', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert ran(code) == "[]"
