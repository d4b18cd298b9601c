"""`course.yml` as data: the notebooks in order, and what is said about each.

It reads and checks; `header.py` writes the texts that follow from it. It doesn't look into notebooks.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import project_root


@dataclass(frozen=True)
class Goal:
    """One learning goal and the check that meets it: an exercise id ("07.1") or a section ("§2")."""

    text: str
    check: str


@dataclass(frozen=True)
class Need:
    """Something the reader needs before starting, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Notebook:
    """One entry of `course.yml`."""

    number: str
    slug: str
    title: str
    promise: str
    figure: str
    goals: tuple[Goal, ...]
    builds: tuple[str, ...]
    needs: tuple[Need, ...]
    prerequisites: tuple[str, ...]
    writes: tuple[str, ...]
    packages: tuple[str, ...]

    @property
    def stem(self) -> str:
        """File name without extension, e.g. `07_pretraining`."""
        return f"{self.number}_{self.slug}"


@dataclass(frozen=True)
class Catalog:
    """The whole course: title, repository (`owner/name` or None), notebooks in order, and the project's folder."""

    title: str
    repository: str | None
    notebooks: tuple[Notebook, ...]
    root: Path

    def __getitem__(self, number: str) -> Notebook:
        """Return the notebook with this number, e.g. "07".

        Raises:
            EcgChatError: there is no such notebook.
        """
        for notebook in self.notebooks:
            if notebook.number == number:
                return notebook
        known = " ".join(notebook.number for notebook in self.notebooks)
        raise EcgChatError(f"course.yml: no notebook '{number}'. The course has: {known}")

    def select(self, numbers: list[str] | None) -> tuple[Notebook, ...]:
        """Return the notebooks with these numbers in the course's order; all of them for None or an empty list."""
        if not numbers:
            return self.notebooks
        wanted = {self[f"{int(number):02d}" if number.isdigit() else number].number for number in numbers}
        return tuple(notebook for notebook in self.notebooks if notebook.number in wanted)

    def following(self, notebook: Notebook) -> Notebook | None:
        """Return the notebook after this one, or None for the last."""
        position = self.notebooks.index(notebook) + 1
        return self.notebooks[position] if position < len(self.notebooks) else None

    def source(self, notebook: Notebook) -> Path:
        """Return the hand-written source, `notebooks/py/NN_slug.py`."""
        return self.root / "notebooks" / "py" / f"{notebook.stem}.py"

    def built(self, notebook: Notebook, *, solutions: bool = False) -> Path:
        """Return the built notebook: with stubs, or whole in `notebooks/solutions/`."""
        folder = self.root / "notebooks" / ("solutions" if solutions else "")
        return folder / f"{notebook.stem}.ipynb"


def load_catalog(root: Path | None = None) -> Catalog:
    """Read and check `course.yml` in `root` (default: the project's folder).

    Raises:
        EcgChatError: a field is missing, unknown or ill-formed; the message names the notebook and the field.
    """
    root = root or project_root()
    content = yaml.safe_load((root / "course.yml").read_text(encoding="utf-8"))
    notebooks = tuple(_notebook(entry) for entry in content["notebooks"])
    seen: list[str] = []
    for notebook in notebooks:
        unknown = [number for number in notebook.prerequisites if number not in seen]
        if unknown or notebook.number in seen:
            problem = f"prerequisite {unknown[0]} doesn't come earlier" if unknown else "the number is used twice"
            raise EcgChatError(f"course.yml: notebook {notebook.number}: {problem}")
        seen.append(notebook.number)
    return Catalog(content["title"], content.get("repository"), notebooks, root)


def _notebook(entry: dict[str, Any]) -> Notebook:
    """Turn one YAML entry into a `Notebook`, checking that each field is there and nothing else is."""
    where = f"course.yml: notebook {entry.get('number', '?')}"
    fields = set(Notebook.__dataclass_fields__)
    wrong = sorted(fields ^ set(entry))
    if wrong:
        raise EcgChatError(f"{where}: field '{wrong[0]}' is {'missing' if wrong[0] in fields else 'unknown'}")
    if not re.fullmatch(r"\d\d", str(entry["number"])) or not re.fullmatch(r"[a-z0-9_]+", entry["slug"]):
        raise EcgChatError(f'{where}: the number must be two digits in quotes, "07", and the slug [a-z0-9_]')
    lists = {name: tuple(entry[name]) for name in ("builds", "prerequisites", "writes", "packages")}
    try:
        goals = tuple(Goal(**goal) for goal in entry["goals"])
        needs = tuple(Need(**need) for need in entry["needs"])
    except TypeError as error:
        raise EcgChatError(f"{where}: goals have 'text' and 'check', needs have 'what' and 'why': {error}") from None
    if not 3 <= len(goals) <= 5:
        raise EcgChatError(f"{where}: {len(goals)} goals; a notebook has three to five")
    return Notebook(**{**entry, **lists, "goals": goals, "needs": needs})
