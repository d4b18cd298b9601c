"""The runner: executes the notebooks in order with papermill, with any profile and parameters, and says what it cost.

Everything that can be wrong with a parameter is found before the first cell runs. It doesn't touch the committed
notebooks; `builder.py` makes those.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from papermill.exceptions import PapermillExecutionError

from ecgchat_lib.course import results
from ecgchat_lib.course.builder import strip, validate_parameters
from ecgchat_lib.course.catalog import Catalog, Notebook
from ecgchat_lib.course.figure import write_atomically
from ecgchat_lib.course.kernel import environment, kernel_environment
from ecgchat_lib.course.parameters import Value, load_profile, read_parameters, resolve
from ecgchat_lib.errors import MissingPartError, ParameterError


@dataclass(frozen=True)
class Job:
    """One notebook that is going to run: where it is, and which parameters are set in it."""

    notebook: Notebook
    path: Path
    inject: dict[str, Value]
    explicit: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook; `failed` is None, or the cell and the error in one line."""

    number: str
    seconds: float
    peak_memory_mb: int
    wrote: tuple[str, ...]
    failed: str | None


def plan(catalog: Catalog, *, profile: str, only: list[str] | None, settings: list[str], solutions: bool) -> list[Job]:
    """Return what is to be run, every parameter checked.

    Args:
        catalog: the course.
        profile: whose values hold for parameters that aren't set.
        only: numbers of notebooks; None for all.
        settings: `NAME=VALUE`, for each chosen notebook that has the parameter, or `NN:NAME=VALUE`.
        solutions: run the versions with the exercises solved.

    Raises:
        ParameterError: a setting is ill-formed, names a parameter no chosen notebook has, or has a wrong value; or a
            notebook declares a parameter that it doesn't read.
        MissingPartError: a notebook hasn't been built.
    """
    load_profile(profile)
    jobs, used = [], set()
    for notebook in catalog.select(only):
        path = catalog.built(notebook, solutions=solutions)
        if not path.is_file():
            raise MissingPartError(str(path), "no such file", f"Run: ecgchat course build --only {notebook.number}")
        stored = nbformat.read(path, as_version=4)
        validate_parameters(notebook, stored)
        cell = next(cell for cell in stored.cells if "parameters" in cell.metadata.get("tags", []))
        declared = read_parameters(cell.source, f"notebook {notebook.number}")
        given: dict[str, Value] = {}
        for setting in settings:
            number, name, text = split_setting(setting)
            if number in (None, notebook.number) and (number or name in declared):
                if name not in declared:
                    raise ParameterError(
                        f"notebook {number}: there is no parameter {name}; it has {', '.join(declared)}"
                    )
                given[name] = declared[name].parsed(text, f"notebook {notebook.number}")
                used.add(setting)
        explicit = tuple(given)
        given.setdefault("PROFILE", declared["PROFILE"].checked(profile, f"notebook {notebook.number}"))
        values = resolve(notebook.number, declared, given, explicit)
        inject = {name: v for name, v in values.items() if v != declared[name].default or name in explicit}
        jobs.append(Job(notebook, path, inject, explicit))
    for setting in settings:
        if setting not in used:
            raise ParameterError(f"--param {setting}: none of the chosen notebooks has this parameter")
    return jobs


def split_setting(setting: str) -> tuple[str | None, str, str]:
    """Return notebook number (or None), name and value of `NN:NAME=VALUE` or `NAME=VALUE`."""
    name, equals, text = setting.partition("=")
    number, colon, rest = name.partition(":")
    if not equals or not (rest if colon else name):
        raise ParameterError(f"--param {setting}: write NAME=VALUE or NN:NAME=VALUE")
    if (rest if colon else name) == "PROFILE":
        raise ParameterError(f"--param {setting}: the profile holds for all notebooks; use --profile {text}")
    return (number, rest, text) if colon else (None, name, text)


def run_series(
    jobs: list[Job], root: Path, out: Path, *, keep_going: bool = False, tell: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Run notebooks in order; stop at the first that fails unless `keep_going`; `tell` hears of each as it ends."""
    done = []
    for job in jobs:
        outcome = run_one(job, root, out)
        done.append(outcome)
        if tell:
            tell(outcome)
        if outcome.failed and not keep_going:
            break
    return done


def run_one(job: Job, root: Path, out: Path) -> Outcome:
    """Run one notebook into `out/executed/`; figures, results and artefacts go under `out` too."""
    out = out.resolve()
    target = out / "executed" / job.path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    profile = load_profile(str(job.inject.get("PROFILE", "ci")))
    values = kernel_environment(root, out, block_network=not profile["network"])
    before = _files(out)
    began, memory, failed = time.perf_counter(), PeakMemory(), None
    with environment(values | {"ECGCHAT_EXPLICIT": ",".join(job.explicit)}), memory:
        try:
            papermill.execute_notebook(
                str(job.path),
                str(target),
                parameters=job.inject,
                kernel_name="python3",
                cwd=str(out),
                progress_bar={"desc": job.path.stem, "leave": False, "disable": None},
                execution_timeout=profile["cell_timeout"] or None,
                extra_arguments=["--log-level=CRITICAL"],
            )
        except PapermillExecutionError as error:
            failed = f"{_cell_id(target, error.exec_count)}: {error.ename}: {_one_line(error.evalue)}"
        except Exception as error:  # a dead kernel, a cell out of time: told like a failing cell
            failed = f"{type(error).__name__}: {_one_line(str(error))}"
    seconds = time.perf_counter() - began
    _tidy(target)
    wrote = tuple(sorted(name for name, when in _files(out).items() if before.get(name) != when))
    outcome = Outcome(job.notebook.number, round(seconds, 1), memory.peak_mb, wrote, failed)
    if not failed:
        _amend(out, outcome)
    return outcome


class PeakMemory:
    """Within a `with`: watches how much memory the child processes of this one hold together."""

    def __init__(self, every: float = 0.2) -> None:
        self.peak_mb = 0
        self._every, self._stop = every, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.peak_mb = max(self.peak_mb, round(total / 1e6))
            if self._stop.wait(self._every):
                return


def record(outcome: Outcome, profile: str, out: Path, root: Path) -> Path:
    """Copy the results of a run that succeeded into `data/results/`, from where headers and notebooks show them."""
    path = results.results_path(out / "results", outcome.number, profile)
    content = results.read_results(path)
    if content is None:
        raise MissingPartError(str(path), "no such file", "The notebook must end with run.finish")
    target = results.results_path(root / "data" / "results", outcome.number, profile)
    results.write_results(target, content)
    return target


def table(outcomes: list[Outcome]) -> str:
    """Return the table that ends a run: notebook, seconds, peak memory, what it wrote."""
    rows = [("notebook", "seconds", "peak memory", "wrote")]
    rows += [(o.number, f"{o.seconds:.1f}", f"{o.peak_memory_mb} MB", o.failed or summary(o.wrote)) for o in outcomes]
    total, most = sum(o.seconds for o in outcomes), max((o.peak_memory_mb for o in outcomes), default=0)
    rows.append(("all", f"{total:.1f}", f"{most} MB", ""))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    line = "  ".join("-" * width for width in [*widths, 5])
    texts = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join([texts[0], line, *texts[1:-1], line, texts[-1]])


def summary(wrote: tuple[str, ...]) -> str:
    """Return what a notebook wrote in a few words: how many figures, other files by name, a folder's files counted."""
    figures = sum(name.startswith("figures/") and name.endswith(".png") for name in wrote)
    parts = [f"{figures} figure{'s' if figures > 1 else ''}"] if figures else []
    others = [name for name in wrote if not name.startswith(("figures/", "executed/"))]
    folders = Counter("/".join(name.split("/")[:2]) for name in others)
    parts += [name if name in others else f"{name}/ ({count} files)" for name, count in folders.items()]
    return ", ".join(parts)


def as_json(outcome: Outcome) -> str:
    """Return an outcome as one line of JSON."""
    return json.dumps(asdict(outcome), ensure_ascii=False)


def _amend(out: Path, outcome: Outcome) -> None:
    """Put the whole notebook's time and the peak over its processes into the results file that it has just written."""
    for name in outcome.wrote:
        if name.startswith(f"results/{outcome.number}_"):
            content: Mapping[str, Any] = json.loads((out / name).read_text(encoding="utf-8"))
            measured = {"seconds": outcome.seconds, "peak_memory_mb": outcome.peak_memory_mb}
            results.write_results(out / name, {**content, "stamp": {**content["stamp"], **measured}})


def _files(folder: Path) -> dict[str, int]:
    """Return the files under a folder with their times of change, hidden ones left out."""

    def walk() -> Iterator[tuple[str, int]]:
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(folder).as_posix(), path.stat().st_mtime_ns

    return dict(walk())


def _cell_id(path: Path, count: int | None) -> str:
    """Return the id of the cell with this execution count, for a message."""
    if path.is_file():
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and cell.execution_count == count and count is not None:
                return f"cell {cell.id}"
    return "a cell"


def _tidy(path: Path) -> None:
    """Remove what papermill notes in a notebook: absolute paths, times, the environment."""
    if path.is_file():
        notebook = nbformat.read(path, as_version=4)
        strip(notebook)
        write_atomically(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode())


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]
