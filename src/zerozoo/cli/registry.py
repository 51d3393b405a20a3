"""The catalogue: the folder `recipes/` itself. A new file there is a new recipe, with nothing to register."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import zerozoo.recipes
from zerozoo.distributed.named_samplers import offer_samplers
from zerozoo.runs.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A recipe as its file says, read without importing it (so that `zerozoo list` is instant)."""

    slug: str
    family: str
    path: Path
    paper: str
    summary: str

    @property
    def module(self) -> str:
        return f"zerozoo.recipes.{self.family}.{self.path.stem}"


@dataclass(frozen=True)
class Recipe:
    """An imported recipe.

    Attributes:
        config_class: frozen dataclass with the paper's defaults.
        presets: overrides by preset name.
        train: (config, run) -> final metrics.
        claims: the paper's claims as experiments, the main one first; empty for baselines.
        plan: (config) -> the lines of `--plan`, when the recipe has one.
    """

    entry: Entry
    module: ModuleType
    config_class: type
    presets: Mapping[str, Mapping[str, Any]]
    train: Callable[..., dict[str, float]]
    claims: tuple[Any, ...]
    plan: Callable[[Any], list[tuple[str, str]]] | None

    @property
    def slug(self) -> str:
        return self.entry.slug

    @property
    def family(self) -> str:
        return self.entry.family

    @property
    def paper(self) -> str:
        return self.entry.paper

    @property
    def extendable(self) -> tuple[str, ...]:
        """Config fields that a resumed run may change."""
        return tuple(getattr(self.module, "EXTENDABLE", ()))

    def preset(self, name: str) -> Mapping[str, Any]:
        """Overrides of a preset. Raises UserError for an unknown name."""
        if name not in self.presets:
            raise UserError(f"Unknown preset {name!r} of {self.slug}{_hint(name, self.presets)}")
        return self.presets[name]

    def make_config(self, overrides: Mapping[str, Any], preset: str | None = None) -> Any:
        """A config from the paper's defaults, a preset and overrides. Raises UserError for unknown fields."""
        values = {**(self.preset(preset) if preset else {}), **overrides}
        known = {field.name for field in dataclasses.fields(self.config_class)}
        for name in values:
            if name not in known:
                raise UserError(f"Unknown field {name!r} of {self.slug}{_hint(name, known)}")
        return self.config_class(**values)


def catalogue() -> list[Entry]:
    """Every recipe, by family and slug."""
    root = Path(zerozoo.recipes.__file__).parent
    return [_read(path) for path in sorted(root.glob("*/*.py")) if path.stem != "__init__"]


def load_recipe(slug: str) -> Recipe:
    """Import a recipe. Raises UserError for an unknown slug."""
    entries = {entry.slug: entry for entry in catalogue()}
    if slug not in entries:
        raise UserError(f"Unknown recipe {slug!r}{_hint(slug, entries)}; `zerozoo list` shows all")
    offer_samplers()
    module = importlib.import_module(entries[slug].module)
    claims = getattr(module, "CLAIM", ())
    return Recipe(
        entry=entries[slug],
        module=module,
        config_class=module.Config,
        presets=module.PRESETS,
        train=module.train,
        claims=claims if isinstance(claims, tuple) else (claims,),
        plan=getattr(module, "plan", None),
    )


def _read(path: Path) -> Entry:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    paper = ""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PAPER" for t in node.targets):
            paper = str(ast.literal_eval(node.value))
    return Entry(path.stem.replace("_", "-"), path.parent.name, path, paper, text.split("\n")[0])


def _hint(name: str, choices: Any) -> str:
    """What to say after an unknown name: the nearest one, or all."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; choose one of: {', '.join(sorted(choices))}"
