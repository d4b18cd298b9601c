"""From a hand-written source to the cells of a notebook: stable ids, generated header and footer, stubs for exercises.

It executes nothing; `builder.py` does that. The same source gives the same cells, always.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ecgchat_lib.course import header
from ecgchat_lib.course.catalog import Catalog, Notebook
from ecgchat_lib.course.check import PLACEHOLDER
from ecgchat_lib.errors import EcgChatError, MissingPartError

_SOLUTION = re.compile(
    r"^([ \t]*)# <solution>[ \t]*\n(.*?)^[ \t]*# </solution>[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE
)
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def compose(catalog: Catalog, notebook: Notebook, *, solutions: bool) -> NotebookNode:
    """Return a notebook without outputs, with exercises as stubs or (`solutions`) whole.

    Raises:
        MissingPartError: the source isn't there.
        EcgChatError: the source has an H1 of its own, no parameters cell, or a broken solution mark.
    """
    path = catalog.source(notebook)
    if not path.is_file():
        raise MissingPartError(
            str(path.relative_to(catalog.root)), "no such file", "Write it, or take it out of course.yml"
        )
    text = path.read_text(encoding="utf-8")
    written = jupytext.reads(text, fmt="py:percent").cells
    cells = [new_markdown_cell(part) for part in header.header(catalog, notebook, solutions=solutions)]
    if catalog.repository:
        cells.append(
            new_code_cell(header.BOOTSTRAP.format(repository=catalog.repository), metadata={"tags": ["colab"]})
        )
    cells += [_cell(cell, solutions, f"{path.name}, cell {k}") for k, cell in enumerate(written, 1)]
    cells.append(new_markdown_cell(header.footer(catalog, notebook)))
    for k, cell in enumerate(cells):
        cell["id"] = f"{notebook.number}-c{k:03d}"
    metadata = {
        "ecgchat": {"source_sha256": hashlib.sha256(text.encode()).hexdigest()},
        "kernelspec": _KERNEL,
        "language_info": {"name": "python"},
    }
    built = new_notebook(cells=cells, metadata=metadata)
    built.nbformat_minor = 5
    nbformat.validate(built)
    return built


def _cell(cell: Any, solutions: bool, where: str) -> NotebookNode:
    """Return one cell of the source as the built notebook has it."""
    if cell.cell_type != "code":
        if re.match(r"# ", cell.source):
            raise EcgChatError(f"{where}: the H1 is generated from course.yml; begin sections with ##")
        return new_markdown_cell(cell.source)
    tags = list(cell.metadata.get("tags", []))
    source = cell.source
    if "solution" in tags:
        source = whole(source, where) if solutions else stub(source, where)
    return new_code_cell(source, metadata={"tags": tags} if tags else {})


def stub(source: str, where: str = "solution cell") -> str:
    """Return a solution cell with each part between the marks replaced by a line for the learner."""
    _check_marks(source, where)
    return _SOLUTION.sub(lambda match: f"{match[1]}{PLACEHOLDER}\n", source).rstrip("\n")


def whole(source: str, where: str = "solution cell") -> str:
    """Return a solution cell without the marks."""
    _check_marks(source, where)
    return _SOLUTION.sub(lambda match: match[2], source).rstrip("\n")


def _check_marks(source: str, where: str) -> None:
    found, opened, closed = (len(re.findall(p, source)) for p in (_SOLUTION, "# <solution>", "# </solution>"))
    if not found or not found == opened == closed:
        raise EcgChatError(f"{where}: a solution cell needs the lines '# <solution>' and '# </solution>', in pairs")
