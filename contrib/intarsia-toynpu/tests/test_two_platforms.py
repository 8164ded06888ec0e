"""Two platforms in one process: a model on the host and one on the device, compiled and run side by side."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import intarsia

sys.path.insert(0, str(Path(__file__).parent))

from npu_models import decoder

pytestmark = pytest.mark.contrib

TOKENS = {"ids": {0: "n"}}


def ids(count: int) -> torch.Tensor:
    return torch.randint(0, 64, (count,))


def make_ids(sizes: Mapping[str, int], key: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (ids(sizes["n"]).to("toynpu"),), {}


def test_each_model_gets_the_defaults_of_its_own_platform() -> None:
    reference = decoder(layers=2)
    here = intarsia.compile(
        reference, (ids(5),), dynamic=TOKENS, boxes={"n": [1, 32]}, cache=False, compilers=["eager"]
    )
    there = intarsia.compile(
        copy.deepcopy(reference).to("toynpu"), (ids(5).to("toynpu"),), dynamic=TOKENS,
        boxes={"n": [1, 32]}, sizes={"n": [2]}, cache=False,
    )  # fmt: skip
    try:
        assert here.report.pieces == 1, "the device's rules cut a model on the CPU"
        assert there.report.pieces == 5
        assert there.record(make_ids).recordings == 3
        for count in (1, 2, 3, 2):
            given = ids(count)
            expected = reference(given)
            torch.testing.assert_close(here(given), expected, rtol=2e-5, atol=2e-5)
            found = there(given.to("toynpu"))
            torch.testing.assert_close(found.cpu(), expected, rtol=2e-5, atol=2e-5)
        texts = here.explain(), there.explain()
        assert "platform cpu on cpu" in texts[0]
        assert "platform toynpu on toynpu" in texts[1]
        assert "toynpu" not in texts[0]
    finally:
        here.close()
        there.close()


def test_both_run_in_threads_at_the_same_time() -> None:
    reference = decoder(layers=1)
    models = {"cpu": reference, "toynpu": copy.deepcopy(reference).to("toynpu")}
    made = {
        name: intarsia.compile(
            model, (ids(5).to(name),), dynamic=TOKENS, boxes={"n": [1, 32]}, cache=False,
            **({"compilers": ["eager"]} if name == "cpu" else {}),
        )
        for name, model in models.items()
    }  # fmt: skip
    given = [ids(n) for n in (1, 2, 3, 8)]
    expected = [reference(g) for g in given]
    wrong: list[Any] = []

    def run(name: str) -> None:
        try:
            for _ in range(20):
                for one, right in zip(given, expected, strict=True):
                    found = made[name](one.to(name)).cpu()
                    torch.testing.assert_close(found, right, rtol=2e-5, atol=2e-5)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("cpu", "toynpu") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in made.values():
        one.close()
    assert not wrong, wrong


def test_tensors_of_a_model_on_the_device_are_refused_on_the_host() -> None:
    model = decoder(layers=1).to("toynpu")
    made = intarsia.compile(model, (ids(4).to("toynpu"),), cache=False)
    with pytest.raises(intarsia.IntarsiaError, match="toynpu"):
        made(ids(4))
    made.close()


def test_a_model_on_the_device_is_not_compiled_for_another_platform() -> None:
    model = decoder(layers=1).to("toynpu")
    with pytest.raises(intarsia.ConfigError, match='platform = "cpu" .* a model on toynpu'):
        intarsia.compile(model, (ids(4).to("toynpu"),), cache=False, platform="cpu")
