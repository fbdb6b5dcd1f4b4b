"""The Python code of the README and the docs runs, as it stands, one namespace per file."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caloforge.models import MODELS

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(<!--\s*skip\s*-->\s*\n)?```python\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[str]:
    """Python blocks of a file, with its line numbers; those below <!-- skip --> are left out."""
    text = path.read_text()
    found = []
    for match in BLOCK.finditer(text):
        if not match[1]:
            line = text.count("\n", 0, match.start(2))
            found.append("\n" * line + match[2])
    return found


@pytest.fixture(autouse=True)
def models() -> Iterator[None]:
    """A model added by an example is forgotten afterwards."""
    kept = dict(MODELS)
    yield
    MODELS.clear()
    MODELS.update(kept)


def run_tests(case: type, folder: Path) -> None:
    """The tests of a class in an example, as pytest would run them."""
    for name in dir(case):
        if name.startswith("test_"):
            (folder / name).mkdir()
            method = getattr(case(), name)
            method(*([folder / name] if "tmp_path" in inspect.signature(method).parameters else []))


@pytest.mark.parametrize("path", [f for f in FILES if blocks(f)], ids=lambda path: path.name)
def test_the_code_of_the_docs_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in blocks(path):
        exec(compile(block, str(path), "exec"), namespace)
    for name, value in list(namespace.items()):
        if name.startswith("Test") and isinstance(value, type):
            run_tests(value, tmp_path)


def test_blocks_are_found_and_skipped(tmp_path: Path) -> None:
    text = "a\n```python\nx = 1\n```\n<!-- skip -->\n```python\nwrong\n```\n```bash\nls\n```\n```python\ny = 2\n```\n"
    (tmp_path / "a.md").write_text(text)
    assert [block.strip() for block in blocks(tmp_path / "a.md")] == ["x = 1", "y = 2"]
    assert blocks(tmp_path / "a.md")[1].count("\n") == 13
