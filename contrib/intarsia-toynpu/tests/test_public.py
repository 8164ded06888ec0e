"""Public API alone: nothing of torch or intarsia is rebound, and no private name is used."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import intarsia_toynpu
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from children import output_of

pytestmark = pytest.mark.contrib

SNAPSHOT = """
    import sys, types, warnings
    import torch, intarsia
    import torch._dynamo, torch.utils.backend_registration

    def bound():
        "Everything that can be called, by module and attribute, down to the methods of classes."
        found = {}
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] not in ("torch", "intarsia") or not isinstance(module, types.ModuleType):
                continue
            for key, value in list(vars(module).items()):
                if callable(value):
                    found[name, key] = value
                if isinstance(value, type) and getattr(value, "__module__", "") == name:
                    for inner, method in list(vars(value).items()):
                        if callable(method) or isinstance(method, property | classmethod | staticmethod):
                            found[name, f"{key}.{inner}"] = method
        return found

    warnings.simplefilter("ignore")  # reading an attribute may say that it is deprecated
"""

REGISTER = (
    SNAPSHOT
    + """
    before = bound()
    REGISTERING
    after = bound()
    known = {name for name, _ in before}
    print(sorted(k for k in after if k[0] in known and before.get(k) is not after[k]))
"""
)

COMPILE = (
    SNAPSHOT
    + """
    from npu_models import decoder

    model = decoder(layers=1).to(DEVICE)
    ids = lambda n: torch.randint(0, 64, (n,)).to(DEVICE)
    before = bound()
    made = intarsia.compile(model, (ids(5),), dynamic={"ids": {0: "n"}}, sizes={"n": [2]}, cache=False)
    if DEVICE != "cpu":
        assert made.record(lambda sizes, key: ((ids(sizes["n"]),), {})).recordings == 2
    made(ids(2))
    made.close()
    after = bound()
    print(sorted(k for k in before if before[k] is not after.get(k)))
"""
)

NO_AUTOLOAD = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def test_the_device_binds_no_more_of_torch_than_torchs_own_registration() -> None:
    """Torch itself adds `Tensor.toynpu` and the like, and renames its enumerations."""
    register = "import intarsia_toynpu.device as device; device.register()"
    torchs = "torch.utils.backend_registration._setup_privateuseone_for_python_backend('toynpu')"
    found = output_of(REGISTER.replace("REGISTERING", register), **NO_AUTOLOAD)
    assert "Tensor.toynpu" in found
    assert found == output_of(REGISTER.replace("REGISTERING", torchs), **NO_AUTOLOAD)


def test_compiling_recording_and_running_rebinds_nothing() -> None:
    """Nothing but what torch itself does for a model on the CPU, in a process without the device."""
    found = output_of(COMPILE.replace("DEVICE", "'toynpu'"))
    assert found == output_of(COMPILE.replace("DEVICE", "'cpu'"), **NO_AUTOLOAD)


ALLOWED = {
    "_setup_privateuseone_for_python_backend": "torch's way to a device in Python, marked experimental",
    "_schema": "an operation's arguments, as torch's pages on custom operators read them",
}
"""Names with an underscore that belong to torch; there is no other way to what they do."""


def test_the_source_uses_no_private_name_of_torch_or_intarsia() -> None:
    used: set[str] = set()
    own: set[str] = set()
    for path in sorted(Path(intarsia_toynpu.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                is_own = isinstance(node.value, ast.Name) and node.value.id in (
                    "self",
                    "other",
                    "_local",
                )
                used |= set() if is_own or node.attr.endswith("__") else {node.attr}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= {node.value} & set(ALLOWED)
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(
                "intarsia_toynpu"
            ):
                module = node.module or ""
                names = [*module.split("."), *(alias.name for alias in node.names)]
                used |= {name for name in names if name.startswith("_") and name != "__future__"}
                if module.startswith("intarsia"):
                    assert module in ("intarsia.interfaces", "intarsia.errors"), (path.name, module)
    assert used - own == set(ALLOWED)
