"""The builder: from `notebooks/py/*.py` and `course.yml` to executed notebooks with stored outputs and to figures.

Building twice gives the same bytes. `check_built` compares without executing. What cells a notebook has is decided in
`compose.py`; what it may hold, in `hygiene.py`.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from ecgchat_lib.course import header
from ecgchat_lib.course.catalog import Catalog, Notebook
from ecgchat_lib.course.compose import compose
from ecgchat_lib.course.figure import write_atomically
from ecgchat_lib.course.hygiene import lint
from ecgchat_lib.course.kernel import environment, kernel_environment
from ecgchat_lib.course.parameters import read_parameters, resolve, unread
from ecgchat_lib.errors import EcgChatError, ParameterError

TIMEOUT = 600  # seconds for one cell


class BuildError(EcgChatError):
    """A notebook that can't be built: which one, which cell, and what happened."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """Something wrong with a built notebook: its path within the project, and what."""

    path: str
    what: str


def build(catalog: Catalog, notebook: Notebook, *, timeout: int = TIMEOUT, execute: bool = True) -> list[Path]:
    """Build a notebook in both versions and its figures; return the files written.

    Args:
        catalog: the course.
        notebook: which one.
        timeout: seconds that one cell may take.
        execute: False keeps the stored outputs of a notebook whose source hasn't changed and renews the generated
            text only (header, table of times, footer).

    Raises:
        BuildError: a cell raised or ran out of time, the result has something no notebook may hold, or (without
            executing) the source has changed.
    """
    done: dict[bool, NotebookNode] = {}
    with tempfile.TemporaryDirectory(prefix="ecgchat-build-") as folder:
        for solutions in (False, True):
            built = compose(catalog, notebook, solutions=solutions)
            validate_parameters(notebook, built)
            if execute:
                run_cells(built, notebook, catalog.root, Path(folder), timeout)
            else:
                _take_outputs(
                    built, nbformat.read(catalog.built(notebook, solutions=solutions), as_version=4), notebook
                )
            done[solutions] = built
        written = list(_copy_figures(Path(folder) / "figures", catalog.root / "figures", notebook.number))
    for solutions, built in done.items():
        renewed = compose(catalog, notebook, solutions=solutions)  # the header shows the figure, which is there now
        for cell, new in zip(built.cells, renewed.cells, strict=True):
            cell.source = new.source
        problems = lint(built, catalog, notebook, solutions=solutions)
        path = catalog.built(notebook, solutions=solutions)
        if problems:
            raise BuildError(f"{path.relative_to(catalog.root)}: " + "; ".join(problems))
        write_atomically(path, as_bytes(built))
        written.append(path)
    return written


def validate_parameters(entry: Notebook, notebook: Any) -> None:
    """Raise `ParameterError` if a notebook's parameters are ill-formed, unread, or don't fit a profile."""
    where = f"notebook {entry.number}"
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f'{where}: {len(tagged)} cells tagged ["parameters"]; there must be one')
    declared = read_parameters(tagged[0].source, where)
    others = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell is not tagged[0]]
    idle = unread(declared, others)
    if idle:
        raise ParameterError(f"{where}: nothing reads the parameter {idle[0]}")
    for profile in declared["PROFILE"].choices:
        resolve(entry.number, declared, {"PROFILE": profile})


def run_cells(notebook: NotebookNode, entry: Notebook, root: Path, out: Path, timeout: int) -> None:
    """Execute a notebook in place, in a fresh kernel in an empty folder, and strip what differs between runs.

    Raises:
        BuildError: a cell raised, ran out of time, or killed the kernel.
    """
    out.mkdir(parents=True, exist_ok=True)
    values = kernel_environment(root, out, block_network=True)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=CRITICAL"],
        resources={"metadata": {"path": str(out)}},
    )
    try:
        with environment(values, clean=True):
            client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise BuildError(f"notebook {entry.number}: {failure(notebook, error, timeout)}") from None
    strip(notebook)


def failure(notebook: Any, error: Exception, timeout: float) -> str:
    """Return which cell failed, and how, in one line."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" and isinstance(error, CellTimeoutError):
                return f"cell {cell.id}: ran longer than {timeout} s"
            if output.output_type == "error":
                return f"cell {cell.id}: {output.ename}: {' '.join(output.evalue.split())[:400]}"
    return " ".join(str(error).split())[:400]


def strip(notebook: NotebookNode) -> None:
    """Remove metadata of the execution, join streams, and give each picture its alt text in the cell's metadata too."""
    notebook.metadata["language_info"] = {"name": "python"}
    for key in ("widgets", "papermill"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("execution", "papermill", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            continue
        cell.outputs = _joined(cell.outputs)
        for output in cell.outputs:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell.metadata["mystnb"] = {"image": {"alt": alt}}


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighboring pieces of one stream: where they are cut depends on the machine's speed."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def as_bytes(notebook: NotebookNode) -> bytes:
    """Return the notebook as the bytes of its file."""
    return (nbformat.writes(notebook, version=4).rstrip("\n") + "\n").encode()


def check_built(catalog: Catalog, notebook: Notebook) -> Iterator[Problem]:
    """Yield what is out of step or forbidden in the two built versions of a notebook, without executing anything."""
    for solutions in (False, True):
        path = catalog.built(notebook, solutions=solutions)
        name = path.relative_to(catalog.root).as_posix()
        if not path.is_file():
            yield Problem(name, f"isn't built. Run: ecgchat course build --only {notebook.number}")
            continue
        stored, expected = nbformat.read(path, as_version=4), compose(catalog, notebook, solutions=solutions)
        validate_parameters(notebook, expected)
        if [_identity(cell) for cell in stored.cells] != [_identity(cell) for cell in expected.cells]:
            yield Problem(
                name,
                f"out of step: {_difference(stored, expected)}. Run: ecgchat course build --only {notebook.number}",
            )
        elif stored.metadata.get("ecgchat") != expected.metadata["ecgchat"]:
            yield Problem(name, "its source hash isn't that of the source")
        for problem in lint(stored, catalog, notebook, solutions=solutions):
            yield Problem(name, problem)


def check_readme(catalog: Catalog) -> Iterator[Problem]:
    """Yield a problem if README.md's table isn't the one that course.yml gives."""
    path = catalog.root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if header.readme_table(catalog) not in text:
        yield Problem("README.md", "the table of notebooks is out of step. Run: ecgchat course build --text-only")


def build_series(
    catalog: Catalog, chosen: tuple[Notebook, ...], *, execute: bool = True, tell: Callable[[str], None] = print
) -> None:
    """Build notebooks in order, then README.md's table; `tell` gets one line for each."""
    for notebook in chosen:
        written = build(catalog, notebook, execute=execute)
        size = sum(path.stat().st_size for path in written) // 1000
        tell(f"{notebook.stem}: {len(written)} files, {size} kB")
    header.update_readme(catalog)


def _identity(cell: Any) -> tuple[str, str, str, tuple[str, ...]]:
    return cell.cell_type, cell.id, cell.source, tuple(cell.metadata.get("tags", []))


def _difference(stored: Any, expected: Any) -> str:
    for old, new in zip(stored.cells, expected.cells, strict=False):
        if _identity(old) != _identity(new):
            return f"cell {new.id} differs"
    return f"{len(stored.cells)} cells stored, {len(expected.cells)} in the source"


def _take_outputs(notebook: NotebookNode, stored: Any, entry: Notebook) -> None:
    if stored.metadata.get("ecgchat") != notebook.metadata["ecgchat"] or len(stored.cells) != len(notebook.cells):
        raise BuildError(
            f"notebook {entry.number}: the source has changed since it was executed; build it without --text-only"
        )
    for cell, old in zip(notebook.cells, stored.cells, strict=True):
        cell.metadata = old.metadata
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = old.outputs, old.execution_count


def _copy_figures(source: Path, target: Path, number: str) -> Iterator[Path]:
    """Put a notebook's new figures where the project keeps them; figures it no longer makes go."""
    made = {path.name for path in source.glob("*.*")} if source.is_dir() else set()
    if not made:
        return
    for old in target.glob(f"{number}_*.*"):
        if old.name not in made:
            old.unlink()
    for name in sorted(made):
        write_atomically(target / name, (source / name).read_bytes())
        yield target / name
