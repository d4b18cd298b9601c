"""What no built notebook may hold: a lint over one notebook that returns what is wrong with it, in words.

It looks at the stored file only, and runs nothing.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ecgchat_lib.course.catalog import Catalog, Notebook
from ecgchat_lib.course.header import badges

LARGEST_NOTEBOOK = 400_000  # bytes
LONGEST_CELL = 40  # lines of code
LONGEST_OUTPUT = 100  # lines
MOST_IGNORED = 2  # cells per notebook tagged nbval-ignore-output, each with a comment that says why
IGNORED_REASON = "# nbval ignores this output:"

_ABSOLUTE = re.compile(r"(?<![\w/.:])(?:/(?:home|root|tmp|work|usr|var|opt|mnt|Users|content)/[\w.-]+|[A-Z]:\\\\?\w+)")
_PROGRESS = re.compile(r"\d+%\|[ █▏▎▍▌▋▊▉#]*\||\d+(?:\.\d+)?(?:it/s|s/it)")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\b\d\d:\d\d:\d\d\b")
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
_WIDGET = "application/vnd.jupyter.widget"


def lint(notebook: Any, catalog: Catalog, entry: Notebook, *, solutions: bool = False) -> list[str]:
    """Return one line for each thing that is wrong with a built notebook; an empty list if nothing is."""
    found = [*_whole(notebook), *_heads(notebook, catalog, entry, solutions)]
    count = 0
    for cell in notebook.cells:
        where = f"cell {cell.get('id', '?')}"
        if cell.cell_type != "code":
            continue
        count += 1
        if cell.execution_count != count:
            found.append(f"{where}: execution count is {cell.execution_count}, not {count}")
        lines = len(cell.source.splitlines())
        if lines > LONGEST_CELL:
            found.append(f"{where}: {lines} lines of code; at most {LONGEST_CELL}")
        for output in cell.outputs:
            found += [f"{where}: {problem}" for problem in _output(output)]
    return found


def _whole(notebook: Any) -> Iterator[str]:
    size = len(json.dumps(notebook, ensure_ascii=False).encode())
    if size > LARGEST_NOTEBOOK:
        yield f"{size} bytes; at most {LARGEST_NOTEBOOK}"
    for key in ("widgets", "papermill"):
        if key in notebook.metadata:
            yield f"metadata hold '{key}'"
    identities = [cell.get("id") for cell in notebook.cells]
    if None in identities or len(set(identities)) != len(identities):
        yield "cell ids are missing or not unique"
    ignored = sum("nbval-ignore-output" in cell.metadata.get("tags", []) for cell in notebook.cells)
    if ignored > MOST_IGNORED:
        yield f"{ignored} cells tagged nbval-ignore-output; at most {MOST_IGNORED}"
    for cell in notebook.cells:
        if "nbval-ignore-output" in cell.metadata.get("tags", []) and IGNORED_REASON not in cell.source:
            yield f"cell {cell.get('id')}: nbval-ignore-output needs its reason in a comment '{IGNORED_REASON} …'"
        extra = set(cell.metadata) - {"tags", "mystnb"}
        if extra:
            yield f"cell {cell.get('id')}: metadata hold {', '.join(sorted(extra))}"
        if "nbval-skip" in cell.metadata.get("tags", []):
            yield f"cell {cell.get('id')}: nbval-skip hides the cell from the test; use nbval-ignore-output"


def _heads(notebook: Any, catalog: Catalog, entry: Notebook, solutions: bool) -> Iterator[str]:
    """One H1, headings without a gap in their levels, and the generated badge row."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    levels = [len(match) for match in re.findall(r"^(#{1,6}) ", text, flags=re.MULTILINE)]
    if levels.count(1) != 1 or levels[0] != 1:
        yield "there must be one H1, first"
    for above, below in pairwise(levels):
        if below > above + 1:
            yield f"a heading of level {below} follows one of level {above}"
    if badges(catalog, entry, solutions=solutions) not in text:
        yield "the badge row isn't the one that course.yml gives"
    for alt in re.findall(r"!\[([^\]]*)\]\(", text):
        if not alt.strip():
            yield "a picture in the text has no alt text"


def _output(output: Any) -> Iterator[str]:
    """What is wrong with one output."""
    if output.output_type == "error":
        yield f"stored error {output.ename}"
        return
    if output.get("name") == "stderr":
        yield f"output on stderr: '{output.text[:80].strip()}'"
    data = output.get("data", {})
    if any(kind.startswith(_WIDGET) for kind in data):
        yield "a widget"
    for kind in data:
        if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip():
            yield "a picture without alt text; show it with run.show"
    text = output.get("text", "") + "\n".join(str(v) for kind, v in data.items() if kind.startswith("text/"))
    if len(text.splitlines()) > LONGEST_OUTPUT:
        yield f"{len(text.splitlines())} lines of output; at most {LONGEST_OUTPUT}"
    for pattern, name in (
        (_ABSOLUTE, "an absolute path"),
        (_PROGRESS, "a progress bar"),
        (_TIME, "a time of day"),
        (_ADDRESS, "a memory address"),
        (re.compile("\x1b\\["), "terminal color codes"),
    ):
        match = pattern.search(text)
        if match:
            yield f"{name}: '{match[0].strip()}'"
