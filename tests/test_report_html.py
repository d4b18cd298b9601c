"""The HTML page: whole in itself, readable without eyes and without colors, and it asks for nothing."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

import pytest
from test_report_sections import READING

from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.paper import describe
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.paths import data_folder
from ecgchat_lib.report.html import report_html
from ecgchat_lib.report.picture import tracing_svg
from ecgchat_lib.report.sections import TITLES, ModelAnswer, build_report
from ecgchat_lib.report.write import make_report, write_report

VOID = {"meta", "br", "link", "img"}


@pytest.fixture(scope="module")
def page():
    sample = read_recording(data_folder() / "real_sample" / "A0001")
    measurements, quality = measure(sample), judge(sample)
    said = [
        ModelAnswer("Pathological Analysis", "What is the heart rhythm?", "Sinus bradycardia.", ("a note",)),
        ModelAnswer("Diagnosis", "Is this ECG normal?", "I can't say.", abstained=True, reason="outside"),
    ]
    words = describe(sample, measurements, quality=quality)
    report = build_report(sample, measurements, quality, said, description=words, reading=READING)
    return report_html(report, tracing=tracing_svg(sample, "Tracing of A0001", words))


class Tree(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag  # each element is closed, in order

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag):
        return [data.strip() for where, data in self.texts if where == tag and data.strip()]


def test_it_is_whole_and_asks_for_nothing(page):
    tree = Tree(page)
    assert tree.open == []
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<(?:script|link|img|iframe|object|embed|form|a)\b|@import|\bon\w+=", page)
    assert set(re.findall(r"(?:href|src)=\"(.)", page)) == {"#"}
    assert not re.search(r"url\((?!#)", page)
    policy = next(a["content"] for tag, a in tree.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert "script" not in policy


def test_a_screen_reader_finds_its_way(page):
    tree = Tree(page)
    attributes = dict(tree.tags[0:1])["html"]
    assert attributes["lang"] == "en"
    assert tree.text("title") == ["ECG report: A0001", "Tracing of A0001"]
    headings = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    assert [text for text in tree.text("h2") if text in TITLES] == list(TITLES)
    drawing = next(a for tag, a in tree.tags if tag == "svg")
    assert drawing["role"] == "img"
    ids = {a["id"] for _, a in tree.tags if "id" in a}
    assert set(drawing["aria-labelledby"].split()) <= ids
    assert all(a["aria-labelledby"] in ids for tag, a in tree.tags if tag == "section")
    assert tree.text("desc")[0].startswith("Twelve-lead ECG A0001, 15.0 s at 500 Hz. A regular rhythm of 101 beats")
    tables = [tag for tag, _ in tree.tags if tag == "table"]
    assert len(tables) == len(tree.text("caption")) == 3
    scopes = [a.get("scope") for tag, a in tree.tags if tag == "th"]
    assert set(scopes) == {"col", "row"}


def test_color_is_never_alone(page):
    tree = Tree(page)
    flags = {data.strip() for where, data in tree.texts if where == "td" and "high" in data}
    assert flags == {"↑ high"}
    assert any(text.startswith("! Contradicts the measurements") for text in tree.text("strong"))
    assert "No answer." in tree.text("strong")
    assert "Said by the model, not measured" in tree.text("h3")


def luminance(color):
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_at_least_four_and_a_half(page):
    colors = dict(re.findall(r"--(\w+): (#\w{6});", page))
    pairs = [*itertools.product(("ink", "accent", "quiet", "alarm", "modelink"), ("paper", "modelback"))]
    for ink, paper in pairs:
        light, dark = sorted((luminance(colors[ink]), luminance(colors[paper])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
    used = set(re.findall(r"[^-]color: (#\w+|var\(--\w+\))", page))
    assert used <= {f"var(--{name})" for name in colors}


def test_it_is_the_same_content_as_the_others(page, tmp_path):
    sample = read_recording(data_folder() / "real_sample" / "A0002")
    report = make_report(sample)
    for kind in ("html", "md"):
        path = write_report(sample, tmp_path / f"r.{kind}", kind=kind, report=report)
        text = re.sub(r"&#39;", "'", path.read_text())
        for section in report.sections:
            for entry in section.entries:
                assert entry.text in text
        for item in report.flags:
            assert item.name in text
    assert "![Twelve-lead ECG A0002" in (tmp_path / "r.md").read_text()
    assert "](r-tracing.png)" in (tmp_path / "r.md").read_text()
    with pytest.raises(ParameterError, match="kind 'doc'"):
        write_report(sample, tmp_path / "r.doc", kind="doc")
