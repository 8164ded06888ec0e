from __future__ import annotations

import re
from pathlib import Path

import pytest

from intarsia.config import load_config
from intarsia.config.reference import reference
from intarsia.config.settings import Config
from intarsia.config.sources import variables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config.md"


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m intarsia.config.reference docs/config.md"
    )


def test_every_variable_is_on_the_page() -> None:
    page = reference()
    assert all(f"`{name}`" in page for name in variables())


def examples() -> list[tuple[str, str]]:
    sections = re.findall(r"^## `([\w.-]+)`$(.*?)(?=^## |\Z)", reference(), re.M | re.S)
    found = [(key, re.search(r"For example: `(.*)`\.$", text, re.M)) for key, text in sections]
    return [(key, match[1]) for key, match in found if match]


@pytest.mark.parametrize(("key", "line"), examples())
def test_every_example_can_be_written_in_a_file(tmp_path: Path, key: str, line: str) -> None:
    table = key.rpartition(".")[0]
    file = tmp_path / "intarsia.toml"
    file.write_text(f"[{table}]\n{line}" if table else line)
    resolved = load_config(file, environ={})
    assert resolved.config != Config()
