"""The same report as one HTML file that asks for nothing outside itself, for a browser, a screen reader or a printer.

The template (Jinja2) escapes every value by itself; the page's own policy forbids scripts and every request. The
tracing is an inline SVG with its description. Taught in: 13 §7
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from ecgchat_lib.report.escaping import shorten, visible
from ecgchat_lib.report.picture import Svg
from ecgchat_lib.report.sections import (
    ADVICE_NOTICE,
    CLASSIFIER_NOTICE,
    DESCRIPTION_LIMIT,
    FOOTER,
    MODEL_NOTICE,
    NAME_LIMIT,
    NOT_RECORDED,
    Report,
    shortened,
)

if TYPE_CHECKING:
    import jinja2

FLAG_WORDS = {"low": "↓ low", "high": "↑ high", "normal": "normal", "unknown": "–"}


def report_html(report: Report, *, tracing: Svg | None = None, text_limit: int = 700) -> str:
    """Lay a report out as a whole HTML page; every value is escaped.

    Args:
        report: the content.
        tracing: the picture, from `picture.tracing_svg`; None for a page without it.
        text_limit: characters that are shown of a text by a file or a model; the rest is counted in a note. What is
            told of the patient is never cut.

    Returns:
        HTML without scripts, links or anything to load.
    """
    from markupsafe import Markup

    middle = (len(report.flags) + 1) // 2
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            record=shorten(report.record, NAME_LIMIT),
            sections=[shortened(section, text_limit) for section in report.sections],
            tracing=None if tracing is None else Markup(tracing),
            halves=[half for half in (report.flags[:middle], report.flags[middle:]) if half],
            description=shorten(report.description, DESCRIPTION_LIMIT),
            flag_words=FLAG_WORDS,
            not_recorded=NOT_RECORDED,
            model_notice=MODEL_NOTICE,
            classifier_notice=CLASSIFIER_NOTICE,
            advice_notice=ADVICE_NOTICE,
            footer=FOOTER,
        )
    )


def summary_html(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str], counts: str, notice: str) -> str:
    """Lay the summary of a batch out as a whole HTML page.

    Args:
        rows: one for each recording: column → text; "file" holds relative paths, with spaces between them.
        columns: column → heading, in their order.
        counts: how many there are, in a sentence.
        notice: what the reports aren't.
    """
    page = _environment().get_template("summary.html.j2")
    return page.render(rows=rows, columns=columns, counts=counts, notice=notice, footer=FOOTER)


@cache
def _environment() -> jinja2.Environment:
    """Return Jinja2 that escapes everything, and shows what can't be seen by its code."""
    import jinja2
    from markupsafe import Markup

    def shown(value: object) -> object:
        return value if isinstance(value, Markup) else visible(str(value))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ecgchat_lib.report", "templates"),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["minus"] = lambda text: text.replace("-", "−")
    environment.filters["path"] = lambda text: quote(text.encode("utf-8", "surrogatepass"))
    return environment
