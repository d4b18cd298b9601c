"""Hostile texts in every field: the PDF shows them, HTML and Markdown get no element of them, and nothing runs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import unicodedata
from html.parser import HTMLParser

import pypdfium2
import pytest
from markdown_it import MarkdownIt
from report_hostile import HOSTILE, WORKS_WITH, expected, squeezed, watched
from test_knowledge import measured
from test_report_sections import GOOD, recording

from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder
from ecgchat_lib.report import escaping, latex
from ecgchat_lib.report.escaping import Latex
from ecgchat_lib.report.html import report_html, summary_html
from ecgchat_lib.report.latex import compile_pdf, find_engines, render_latex
from ecgchat_lib.report.markdown import report_markdown, summary_markdown
from ecgchat_lib.report.picture import draw_tracing, tracing_svg
from ecgchat_lib.report.sections import ModelAnswer, PatientDetails, build_report
from ecgchat_lib.report.write import write_report

MEASURED = dict(heart_rate_bpm=98, rr_ms=612, pr_ms=210, qrs_ms=136, qt_ms=392, qtc_ms=501, axis_deg=-41, r_mv=0.8)
REAL = data_folder() / "real_sample" / "A0001"
DRAWING = {"svg", "g", "path", "use", "defs", "clippath", "rect", "title", "desc"}
FIELDS = 9  # of a report that hold a text by somebody else


def hostile_report(texts):
    """A report with a text in each field that isn't this project's own; the last ones are repeated."""
    name, who, identifier, history, medication, symptom, question, answer, note = (list(texts) * FIELDS)[:FIELDS]
    sample = dataclasses.replace(recording(name=name), notes=(note,), comments=(f"Sx: {symptom}",))
    patient = PatientDetails(name=who, identifier=identifier, history=history, medication=medication)
    said = [ModelAnswer("Diagnosis", question, answer, (note,)), ModelAnswer("Pathological Analysis", "?", answer)]
    return build_report(sample, measured(**MEASURED), GOOD, said, patient=patient, description=answer)


def groups(size=FIELDS - 1):
    """The hostile texts, some for each report; long ones alone, so that the page has room for the others."""
    short = [text for text in HOSTILE.values() if len(text) <= 200]
    return [short[k : k + size] for k in range(0, len(short), size)]


@pytest.mark.parametrize("texts", groups(), ids=str)
def test_a_pdf_shows_hostile_texts(tmp_path, texts):
    pdf = tmp_path / "r.pdf"
    source = render_latex(hostile_report(texts), least_mm=1, text_limit=200, patient_limit=200)
    assert compile_pdf(source, pdf, engines=[watched(find_engines()[0], tmp_path / "left")]) == 1
    assert set((tmp_path / "left").read_text().split()) <= WORKS_WITH  # nothing else was written
    with pypdfium2.PdfDocument(pdf) as document:
        shown = squeezed("".join(page.get_textpage().get_text_bounded() for page in document))
    for text in texts:
        assert expected(text, lambda c: escaping._one(c) is not None, 60, escaping._LONGEST_CODES)[:40] in shown, text


def test_without_escaping_a_hostile_text_would_be_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(latex, "escape", Latex)
    source = render_latex(build_report(recording(name=HOSTILE["openout"]), measured(), GOOD))
    with contextlib.suppress(EcgChatError):
        compile_pdf(source, tmp_path / "r.pdf", engines=[watched(find_engines()[0], tmp_path / "left")])
    assert set((tmp_path / "left").read_text().split()) - WORKS_WITH == {"hacked.tex"}


class Fixed:
    """A session that gives the same answer to every question."""

    def __init__(self, text):
        self.text, self.notes = text, ()

    def ask(self, recording, question):
        return self


def test_long_hostile_texts_fit_on_a_page(tmp_path):
    sample = read_recording(REAL)
    texts = [text for text in HOSTILE.values() if len(text) > 200]
    patient = PatientDetails(*texts[:2], history=texts[2], medication="aspirin", symptoms=texts[3])
    hostile = dataclasses.replace(sample, name=texts[2], notes=(texts[0],))
    pdf = write_report(hostile, tmp_path / "r.pdf", patient=patient, session=Fixed(texts[1]))
    with pypdfium2.PdfDocument(pdf) as document:
        assert len(document) == 1
        shown = squeezed(document[0].get_textpage().get_text_bounded())
    assert shown.count("morecharactersnotshown") >= 4
    assert "WWWWWWWW" in shown
    assert r"\{\{\{" in shown
    assert "U+1F600" in shown


class Structure(HTMLParser):
    """A page's elements and attributes' names, and its texts."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self.texts, self.values = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(name for name, _ in attributes)))
        self.values += [value or "" for _, value in attributes]

    def handle_endtag(self, tag):
        self.found.append((f"/{tag}", ()))

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.found.append(("comment", ()))

    def handle_decl(self, declaration):
        self.found.append((declaration, ()))


PLAIN = hostile_report(["plain"])


@pytest.mark.parametrize("name", HOSTILE)
def test_html_gets_no_element_of_a_hostile_text(name):
    page = report_html(hostile_report([HOSTILE[name]]))
    page.encode("utf-8")  # no lone surrogate is left
    found, plain = Structure(page), Structure(report_html(PLAIN))
    assert found.found == plain.found
    assert not [c for c in page if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") and c != "\n"]
    wanted = expected(HOSTILE[name], lambda c: c.isprintable(), 700)
    if name != "combining":  # a pile of marks is shown by code from the fourth mark on
        assert squeezed("".join(found.texts)).count(wanted[:30]) >= FIELDS - 1
    assert not any(squeezed(HOSTILE[name])[:20] in squeezed(value) for value in found.values if len(HOSTILE[name]) > 20)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_gets_no_element_of_a_hostile_text(name):
    render = MarkdownIt("commonmark", {"html": True}).enable("table").render
    text = report_markdown(hostile_report([HOSTILE[name]]), tracing="x.png")
    text.encode("utf-8")
    found, plain = Structure(render(text)), Structure(render(report_markdown(PLAIN, tracing="x.png")))
    assert found.found == plain.found
    assert not re.search(r"://|www\.|\w@", text.replace("https", ""))  # GitHub's autolinks
    wanted = expected(HOSTILE[name], lambda c: c.isprintable(), 700)
    if name != "combining":
        assert squeezed("".join(found.texts)).count(wanted[:30]) >= FIELDS - 1


def test_a_pile_of_marks_is_taken_apart():
    assert escaping.visible("e\u0301") == "é"
    assert escaping.visible("Z" + "\u0335" * 5) == "Z" + "\u0335" * 3 + "[U+0335]" * 2
    assert escaping.plain("A\u05d0\U0001f600\x00") == "A[U+05D0][U+1F600][U+0000]"


@pytest.mark.filterwarnings("error")  # a glyph that the font lacks would be a warning on the user's terminal
def test_a_tracing_can_have_any_name():
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    glyphs = FT2Font(findfont("DejaVu Sans")).get_charmap()
    titles = {escaping.plain(escaping.shorten(text, 60)) for text in HOSTILE.values()}
    assert not [c for title in titles for c in title if ord(c) not in glyphs]
    figure = draw_tracing(recording(name="$x_{$ \x00 \ud800 " + HOSTILE["emoji"]))
    figure.savefig(io.BytesIO(), format="png", dpi=20)


def test_the_svg_is_a_drawing_and_nothing_else():
    hostile = HOSTILE["closing tags"]
    sample = dataclasses.replace(read_recording(REAL), name=hostile)
    drawn = tracing_svg(sample, hostile, hostile + "\x00\ud800")
    found = Structure(drawn)
    assert {tag.strip("/") for tag, _ in found.found} <= DRAWING
    links = re.findall(r'(?:href="|url\()(.*?)[")]', drawn)
    assert links
    assert all(link.startswith("#tracing-") for link in links)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", drawn)
    ids = re.findall(r' id="(.*?)"', drawn)
    assert len(set(ids)) == len(ids)
    assert set(link[1:] for link in links) <= set(ids)
    assert squeezed(hostile) in squeezed("".join(found.texts))
    assert drawn == tracing_svg(sample, hostile, hostile + "\x00\ud800")  # no dates, no random ids


@pytest.mark.parametrize("name", ["script", "surrogate", "markdown", "direction override"])
def test_a_summary_gets_no_element_of_a_hostile_text(name):
    def pages(text):
        rows = [{"record": text, "error": text, "file": text, "files": ["a b<.html"]}]
        columns = {"record": "Recording", "error": "Error", "file": "Report"}
        md = summary_markdown(rows, columns, text, text)
        html = summary_html(rows, columns, text, text)
        return Structure(html), Structure(MarkdownIt("commonmark", {"html": True}).enable("table").render(md))

    for found, plain in zip(pages(HOSTILE[name]), pages("plain"), strict=True):
        assert found.found == plain.found
    assert "a%20b%3C.html" in pages("plain")[0].values
