"""Count what hostile texts do to a report, and time and weigh reports.

    python benchmarks/report.py [--only STEP ...] [--repeats 3] [--out data/results/report.json]

Four steps: hostile, memory, latex, time. With --only, what --out holds of the other steps is kept if it is of the same
state of the library.

Hostile: each text of `tests/report_hostile.py` is put into each field that isn't this project's own, one field at a
time. Counted for each field are the PDFs of one page, those that are refused because the text doesn't fit, those whose
extracted text shows it (as itself, or by its code), the files that LaTeX wrote beside its own, and the HTML and
Markdown pages with the elements of a harmless report.

Time: the real sample recordings, with the course's chat model. The model's own time (its answers) is told apart from
everything else: measuring, judging, classifying, drawing, laying out, compiling. One report is made before, untimed.
And the whole command, from its start to its end, with and without the model.

Memory: the process's resident set after each report of a batch without the language model.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pypdfium2
from markdown_it import MarkdownIt

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder, project_root
from ecgchat_lib.report import escaping
from ecgchat_lib.report.batch import Settings, plan, run
from ecgchat_lib.report.html import report_html
from ecgchat_lib.report.latex import FILE_BYTES, MEMORY_BYTES, Engine, compile_pdf, find_engines, render_latex
from ecgchat_lib.report.markdown import report_markdown
from ecgchat_lib.report.picture import save_tracing
from ecgchat_lib.report.sections import NAME_LIMIT, QUESTIONS, PatientDetails, Report
from ecgchat_lib.report.write import FITS, KINDS, make_report, write_report

sys.path.insert(0, str(project_root() / "tests"))
from report_hostile import HOSTILE, WORKS_WITH, expected, squeezed, watched

if TYPE_CHECKING:
    from ecgchat_lib.chat.session import Answer, ChatSession

SAMPLE = data_folder() / "real_sample"


class Says:
    """A session that says one text."""

    notes = ()

    def __init__(self, text: str) -> None:
        self.text = text

    def ask(self, recording: Recording, question: str) -> Says:
        """Say it."""
        return self


class Elements(HTMLParser):
    """A page's elements with their attributes' names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[object] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it."""
        self.found.append((tag, [name for name, _ in attrs]))

    def handle_comment(self, data: str) -> None:
        """Keep that there is one."""
        self.found.append("comment")


FIELDS = ("recording's name", "name", "identifier", "history", "medication", "symptoms", "reading note", "answer")


def hostile_report(text: str, field: str = "") -> Report:
    """Return a report of a real recording with a text in one field, and a plain word in the others."""
    said = dict.fromkeys(FIELDS, "plain") | ({field: text} if field else {})
    sample = read_recording(SAMPLE / "A0001")
    comment = f"Sx: {said['symptoms']}"
    sample = dataclasses.replace(
        sample, name=said["recording's name"], notes=(said["reading note"],), comments=(comment,)
    )
    patient = PatientDetails(
        name=said["name"],
        identifier=said["identifier"],
        history=said["history"],
        medication=said["medication"],
        age=50.0,
        sex="male",
    )
    return make_report(sample, session=Says(said["answer"]), patient=patient)


def count_hostile() -> dict[str, Any]:
    """Try each hostile text in each field and each format."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")

    def elements(report: Report) -> tuple[list[object], list[object]]:
        return Elements(report_html(report)).found, Elements(markdown.render(report_markdown(report))).found

    plain = elements(hostile_report(""))
    names = ("pdf_of_one_page", "pdf_refused", "pdf_shows_the_text", "other_files", "html_safe", "markdown_safe")
    fields, failed = {}, []
    for field in FIELDS:
        counts = dict.fromkeys(names, 0)
        for name, text in HOSTILE.items():
            report = hostile_report(text, field)
            pages, shown, others = _pdf(report, text)
            safe = [one == other for one, other in zip(elements(report), plain, strict=True)]
            for key, count in zip(names, (pages == 1, pages == 0, shown, others, *safe), strict=True):
                counts[key] += count
            if not (pages <= 1 and (shown or not pages) and not others and all(safe)):
                failed.append(f"{field}: {name}")
        fields[field] = counts
    longest = max(map(len, HOSTILE.values()))
    return {"n_per_field": len(HOSTILE), "longest_characters": longest, "fields": fields, "failed": failed}


def _pdf(report: Report, text: str) -> tuple[int, bool, int]:
    """Return pages (0: it is refused), whether the text is shown, and how many files LaTeX wrote beside its own."""
    with tempfile.TemporaryDirectory() as folder:
        pdf, left = Path(folder) / "r.pdf", Path(folder) / "left"
        engines = [watched(one, left) for one in find_engines()[:1]]
        try:
            write_report(read_recording(SAMPLE / "A0001"), pdf, report=report, engines=engines)
        except EcgChatError as error:
            print(error)
            return 0, False, _others(left)
        with pypdfium2.PdfDocument(pdf) as document:
            pages = len(document)
            page = squeezed("".join(page.get_textpage().get_text_bounded() for page in document))
        # A page that would overflow shows less of a long text, and says so.
        limits = {NAME_LIMIT, *(limit for _, *both, _ in FITS for limit in both)}
        wanted = (
            expected(text, lambda c: escaping._one(c) is not None, one, escaping._LONGEST_CODES) for one in limits
        )
        return pages, any(one in page for one in wanted), _others(left)


def _others(left: Path) -> int:
    given = WORKS_WITH | {"tracing.pdf"}
    return len(set(left.read_text(encoding="utf-8").split()) - given) if left.is_file() else 0


class Timed:
    """A session that keeps how long its answers took."""

    def __init__(self, session: ChatSession) -> None:
        self.session, self.classifier, self.seconds = session, session.classifier, 0.0

    def reset(self) -> None:
        """Forget the conversation."""
        self.session.reset()

    def ask(self, recording: Recording, question: str) -> Answer:
        """Answer."""
        begun = time.perf_counter()
        answer = self.session.ask(recording, question)
        self.seconds += time.perf_counter() - begun
        return answer


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median, the quartiles and the slowest, in seconds."""
    values = np.percentile(seconds, (50, 25, 75, 100))
    return {
        name: round(float(value), 2)
        for name, value in zip(("median_s", "lower_quartile_s", "upper_quartile_s", "slowest_s"), values, strict=True)
    }


def time_reports(repeats: int) -> dict[str, Any]:
    """Time whole reports of the real sample, the model's answers apart."""
    from ecgchat_lib.chat.session import load_chat

    session = load_chat()
    records = sorted(SAMPLE.glob("*.hea"))
    beyond: dict[str, list[float]] = {kind: [] for kind in KINDS}
    model: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        write_report(read_recording(records[0]), Path(folder) / "warm.pdf", session=session)
        for _ in range(repeats):
            for record in records:
                for kind in KINDS:
                    timed = Timed(session)
                    begun = time.perf_counter()
                    write_report(read_recording(record), Path(folder) / f"r.{kind}", kind=kind, session=timed)
                    beyond[kind].append(time.perf_counter() - begun - timed.seconds)
                    model.append(timed.seconds)
    return {
        "command": {name: spread(values) for name, values in _time_command(records, repeats).items()},
        "n_per_format": repeats * len(records),
        "questions_per_report": len(QUESTIONS),
        "model": spread(model),
        "beyond_the_model": {kind: spread(values) for kind, values in beyond.items()},
    }


def _time_command(records: list[Path], repeats: int) -> dict[str, list[float]]:
    """Time the whole command for one PDF, in a process of its own."""
    found: dict[str, list[float]] = {"with_the_model": [], "without": []}
    code = "from ecgchat_lib.cli import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        for record in records[:repeats]:
            for name, options in (("with_the_model", []), ("without", ["--no-ask"])):
                call = ["report", str(record), "--pdf", f"{folder}/r.pdf", *options]
                begun = time.perf_counter()
                subprocess.run([sys.executable, "-c", code, *call], check=True, stdout=subprocess.DEVNULL)
                found[name].append(time.perf_counter() - begun)
    return found


def weigh_batch(count: int) -> dict[str, Any]:
    """Return how a batch's memory grows."""
    records = [path for _ in range(count // 10 + 1) for path in sorted(SAMPLE.glob("*.hea"))][:count]
    memory = []
    with tempfile.TemporaryDirectory() as folder:
        jobs, main = plan(records, {"html": Path(folder), "md": Path(folder)})
        for _ in run(jobs, main, Settings(), read_recording, lambda: None):
            gc.collect()
            memory.append(psutil.Process().memory_info().rss / 1e6)
    third = count // 3
    return {
        "reports": count,
        "median_mb_of_the_second_third": round(float(np.median(memory[third : 2 * third])), 1),
        "median_mb_of_the_last_third": round(float(np.median(memory[2 * third :])), 1),
    }


def bounds() -> dict[str, Any]:
    """Return the least address space in which pdflatex makes a report with its tracing, beside the bound."""
    engine = next((one for one in find_engines() if one.name == "pdflatex"), None)
    if engine is None or sys.platform != "linux":
        return {}
    source = render_latex(hostile_report(""), tracing="tracing.pdf")
    with tempfile.TemporaryDirectory() as folder:
        tracing = Path(folder) / "tracing.pdf"
        save_tracing(read_recording(SAMPLE / "A0001"), tracing)
        found = next((mb for mb in range(64, 513, 16) if _compiles_within(engine, source, tracing, mb)), None)
    return {"needed_mb": found, "allowed_mb": MEMORY_BYTES["pdflatex"] >> 20, "allowed_file_mb": FILE_BYTES >> 20}


def _compiles_within(engine: Engine, source: str, tracing: Path, mb: int) -> bool:
    allowed = MEMORY_BYTES["pdflatex"]
    MEMORY_BYTES["pdflatex"] = mb << 20
    try:
        with tempfile.TemporaryDirectory() as folder:
            compile_pdf(source, Path(folder) / "r.pdf", files={tracing.name: tracing}, engines=[engine])
        return True
    except EcgChatError:
        return False
    finally:
        MEMORY_BYTES["pdflatex"] = allowed


def main() -> int:
    """Run all of it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "report.json")
    parser.add_argument("--repeats", type=int, default=3, help="times that each recording is reported on")
    parser.add_argument("--batch", type=int, default=60, help="reports of the batch whose memory is weighed")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--only", action="append", choices=("hostile", "memory", "latex", "time"))
    options = parser.parse_args()
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "hostile": count_hostile,
        "memory": lambda: weigh_batch(options.batch),
        "latex": bounds,
        "time": lambda: time_reports(options.repeats),
    }
    content: dict[str, Any] = {"what": "reports: hostile texts counted, time beyond the model's, memory of a batch"}
    if options.only and options.out.is_file():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if before["stamp"]["library_sha256"] == library_hash():
            content |= {name: before[name] for name in steps if name in before}
    for name, step in steps.items():
        if options.only and name not in options.only:
            continue
        content[name] = step()
        print(name, json.dumps(content[name]))
    content |= {
        "note": options.note,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "load_average_at_the_end": [round(value, 1) for value in os.getloadavg()],
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "matplotlib", "torch")},
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
