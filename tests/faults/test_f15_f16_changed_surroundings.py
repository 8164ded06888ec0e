"""F15 and F16: changed variables, and changed versions of torch, Python, compilers and plugins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stores import files_of
from tests.toys import write_distribution
from tests.warm import Fresh, entries_of, fresh

pytestmark = pytest.mark.timeout(240)

PLUGIN = """
    from intarsia.interfaces import Capabilities, CompilerSpec, PlatformSpec
    from intarsia_eager.adaptor import EagerCompiler
    intarsia_api_version = (1, 0)
    def intarsia_compilers():
        return [CompilerSpec("acme", "1", EagerCompiler, environment=("ACME_LEVEL",),
                             capabilities=Capabilities(dynamic_shapes=True, workers=False))]
    def intarsia_platforms():
        return [PlatformSpec("acme", "cpu", compilers=("acme",), environment=("ACME_ARCH",), priority=-1)]
"""
RUN = """
import json, sys
import intarsia
from intarsia.compiling import identity
from tests.models import by_name, randn
fakes = json.loads(sys.argv[2])
if "torch" in fakes:
    torch.__version__ = fakes.pop("torch")
if "python" in fakes:
    import platform
    platform.python_version_tuple = lambda version=fakes.pop("python"): version.split(".")
if "intarsia" in fakes:
    identity.__version__ = fakes.pop("intarsia")
assert not fakes
model, x = by_name("attributes").build(), randn(6, 4)
start = begin(model, (x,), cache=sys.argv[1], dynamic={"x": {0: "n"}}, compilers=["acme"],
              platform="acme")
tell(start, start.compiled(x), same=bool(torch.equal(start.compiled(x), model(x))))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    write_distribution(
        tmp_path / "site", "intarsia-acme", {"acme": "acme_plugin"}, {"acme_plugin": PLUGIN}
    )
    return tmp_path / "site"


def run(site: Path, variables: dict[str, str] | None = None, **fakes: str) -> dict[str, Any]:
    environment = {**os.environ, **(variables or {})}
    found: Fresh = fresh(RUN, site.parent / "c", json.dumps(fakes), paths=[site], env=environment)
    assert found.one["same"]
    assert not found.one["warnings"]
    return found.one


def test_a_declared_variable_misses_and_is_named_and_another_does_not(site: Path) -> None:
    first = run(site)
    assert run(site, {"ACME_OTHER": "1", "HOSTNAME": "pod-7", "POD_IP": "10.0.0.7"})["warm"]
    level = run(site, {"ACME_LEVEL": "3"})
    assert not level["warm"]
    assert 'environment ACME_LEVEL is "\'3\'" here and "None" there' in level["plan_miss"]
    arch = run(site, {"ACME_ARCH": "x9"})
    assert 'environment ACME_ARCH is "\'x9\'" here and "None" there' in arch["plan_miss"]
    back = run(site)
    assert back["warm"]
    assert back["result"] == first["result"]


CHANGES: dict[str, tuple[dict[str, str], str]] = {
    "torch": ({"torch": "2.99.0+fake"}, 'torch is "2.99.0+fake'),
    "python": ({"python": "3.99.1"}, 'python is "CPython 3.99" here'),
    "intarsia": ({"intarsia": "9.9"}, 'intarsia is "9.9'),
}


def test_another_version_is_a_clean_miss_and_going_back_hits(site: Path) -> None:
    run(site)
    kept = set(files_of(site.parent / "c"))
    for name, (fakes, line) in CHANGES.items():
        if (
            name == "torch"
        ):  # the supported range is another check's: a patch release differs as well
            fakes = {"torch": "2.13.99+fake"}
            line = 'torch is "2.13.99+fake'
        other = run(site, **fakes)
        assert not other["warm"]
        assert line in other["plan_miss"]
        assert run(site, **fakes)["warm"]
    assert set(files_of(site.parent / "c")) > kept, "old entries stay until they are collected"
    assert run(site)["warm"]


@pytest.mark.slow
def test_another_version_of_a_plugin_is_a_clean_miss_up_and_down(site: Path) -> None:
    for version, warm in (
        ("1.0", False),
        ("1.1", False),
        ("1.0", True),
        ("0.9", False),
        ("1.1", True),
    ):
        for old in site.glob("*.dist-info"):
            shutil.rmtree(old)
        write_distribution(site, "intarsia-acme", {"acme": "acme_plugin"}, version=version)
        found = run(site)
        assert found["warm"] == warm, (version, found["log"])
        if not warm and version != "1.0":
            assert f'compiler acme plugin is "intarsia-acme {version}" here' in found["plan_miss"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_virtual_environments_on_one_cache_keep_to_themselves(site: Path) -> None:
    """A second environment, real, in which the plugin has another version."""
    venv = site.parent / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(venv)],
        check=True,
    )
    libraries = next((venv / "lib").glob("python*/site-packages"))
    outer = [path for path in sys.path if "site-packages" in path]
    (libraries / "outer.pth").write_text("\n".join(outer) + "\n")
    write_distribution(
        libraries, "intarsia-acme", {"acme": "acme_plugin"}, {"acme_plugin": PLUGIN}, version="2.0"
    )
    code = RUN.replace(
        "import json, sys\n", f"import json, sys\nassert sys.prefix == {str(venv)!r}\n"
    )

    def inside() -> dict[str, Any]:
        return fresh(code, site.parent / "c", "{}", program=str(venv / "bin" / "python")).one

    first, second = run(site), inside()
    assert not second["warm"]
    assert 'compiler acme plugin is "intarsia-acme 2.0" here' in second["plan_miss"]
    assert run(site)["warm"]
    assert inside()["warm"]
    assert first["result"] == second["result"]
    assert len(entries_of(site.parent / "c", "bundle")) == 2
