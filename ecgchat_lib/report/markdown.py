"""The same report as Markdown, for a terminal, a notebook or a web page. Taught in: 13 §6"""

from __future__ import annotations

import re

from ecgchat_lib.report.sections import MODEL_NOTICE, Report, shortened


def report_markdown(report: Report, *, text_limit: int = 700) -> str:
    """Lay a report out as Markdown; every value is escaped, so that it can be no link, heading or HTML.

    Args:
        report: the content.
        text_limit: characters that are shown of a text by a user, a file or a model; the rest is counted in a note.

    Returns:
        Markdown, ending in a line break.
    """

    def safe(text: str) -> str:
        visible = "".join(c if c.isprintable() else f"[U+{ord(c):04X}]" for c in text)
        quoted = visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return re.sub(r"([\\`*_\[\]|~$]|^[-+#=](?=[\s#=-]|$)|(?<=^\d)[.)](?=\s))", r"\\\1", quoted)

    lines = [f"# ECG report: {safe(report.record)}", "", f"**{safe(report.notice)}**", ""]
    for number, whole in enumerate(report.sections, 1):
        section = shortened(whole, text_limit)
        lines += [f"## {number} {section.title}", ""]
        for entry in section.entries:
            label = f"**{safe(entry.label)}:** " if entry.label else ""
            said = {"model": "said by the model: ", "check": "! "}.get(entry.origin, "")
            lines.append(f"- {said}{label}{safe(entry.text)}")
        if section.title == "ECG Data Analysis":
            lines += ["", "| Measurement | Value | Normal | Flag |", "| --- | --- | --- | --- |"]
            for item in report.flags:
                unit = f" {item.unit}" if item.shown != "not measured" else ""
                status = item.status if item.status != "unknown" else ""
                lines.append(f"| {item.name} | {safe(item.shown)}{unit} | {safe(item.normal)} | {status} |")
        lines.append("")
    if report.by_model:
        lines += [f"*{MODEL_NOTICE}*", ""]
    lines += [f"- {safe(str(source))}" for source in report.sources]
    return "\n".join(lines).rstrip() + "\n"
