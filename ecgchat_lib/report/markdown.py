"""The same report as Markdown, for a terminal, a notebook or a web page. Taught in: 13 §7"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from ecgchat_lib.report.escaping import shorten, visible
from ecgchat_lib.report.sections import (
    ADVICE_NOTICE,
    DESCRIPTION_LIMIT,
    FOOTER,
    MODEL_NOTICE,
    NAME_LIMIT,
    Report,
    shortened,
)

_SAID = {
    "model": "said by the model: ",
    "abstained": "no answer: ",
    "check": "! ",
    "classifier": "said by the classifier: ",
}


def report_markdown(report: Report, *, tracing: str | None = None, text_limit: int = 700) -> str:
    """Lay a report out as Markdown; every value is escaped, so that it can be no link, heading or HTML.

    Args:
        report: the content.
        tracing: path of the tracing's picture, seen from the Markdown file; None for a text without it.
        text_limit: characters that are shown of a text by a file or a model; the rest is counted in a note. What is
            told of the patient is never cut.

    Returns:
        Markdown, ending in a line break.
    """
    lines = [f"# ECG report: {safe(shorten(report.record, NAME_LIMIT))}", "", f"**{safe(report.notice)}**", ""]
    for number, whole in enumerate(report.sections, 1):
        section = shortened(whole, text_limit)
        lines += [f"## {number} {section.title}", ""]
        advised = False
        for entry in section.entries:
            if entry.origin == "knowledge" and not advised:
                lines += ["", ADVICE_NOTICE, ""]
                advised = True
            label = f"**{safe(entry.label)}:** " if entry.label else ""
            lines.append(f"- {_SAID.get(entry.origin, '')}{label}{safe(entry.text)}")
        if section.title == "ECG Data Analysis":
            if tracing is not None:
                lines += ["", picture(shorten(report.description, DESCRIPTION_LIMIT), tracing)]
            lines += ["", *_table(report)]
        lines.append("")
    if report.by_model:
        lines += [f"*{MODEL_NOTICE}*", ""]
    if report.sources:
        lines += [f"{number}. {safe(str(source))}" for number, source in enumerate(report.sources, 1)] + [""]
    return "\n".join([*lines, FOOTER]).rstrip() + "\n"


def summary_markdown(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str], counts: str, notice: str) -> str:
    """Lay the summary of a batch out as Markdown; the arguments are those of `html.summary_html`."""
    lines = ["# ECG reports", "", safe(counts), "", f"**{safe(notice)}**", ""]
    lines += [f"| {' | '.join(columns.values())} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(safe(row[column]) for column in columns)} |" for row in rows]
    return "\n".join([*lines, "", FOOTER]) + "\n"


def picture(words: str, path: str) -> str:
    """Return a picture with its alternative text."""
    return f"![{safe(words)}]({quote(path.encode('utf-8', 'surrogatepass'))})"


def safe(text: str) -> str:
    """Return a text on one line in which nothing is Markdown or HTML, and nothing turns into a link."""
    quoted = visible(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    quoted = re.sub(r"([\\`*_\[\]|~$]|^[-+#=](?=[\s#=-]|$)|(?<=^\d)[.)](?=\s))", r"\\\1", quoted)
    quoted = re.sub(r"^(\d{2,9})([.)])(?=\s|$)", r"\1\\\2", quoted)
    quoted = re.sub(r"(?i)\b(www)\.", r"\1&#46;", quoted)
    return quoted.replace("://", "&#58;//").replace("@", "&#64;")


def _table(report: Report) -> list[str]:
    rows = ["| Measurement | Value | Normal | Flag |", "| --- | --- | --- | --- |"]
    for item in report.flags:
        unit = f" {item.unit}" if item.shown != "not measured" else ""
        status = item.status if item.status != "unknown" else ""
        rows.append(f"| {item.name} | {safe(item.shown)}{unit} | {safe(item.normal)} | {status} |")
    return rows
