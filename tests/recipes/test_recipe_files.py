"""Recipes are short, or say why they are not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import zerozoo.recipes

FILES = sorted(path for path in Path(zerozoo.recipes.__file__).parent.glob("*/*.py") if path.name != "__init__.py")
MOST = 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_long_recipe_says_why(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    words = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    reason = re.search(rf"is longer than {MOST} lines because \w+", words)
    assert (len(text.splitlines()) > MOST) == bool(reason)


def test_all_recipes_are_looked_at() -> None:
    assert len(FILES) >= 46
