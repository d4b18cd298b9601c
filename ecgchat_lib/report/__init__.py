"""From a recording to a one-page report: sections, advice, LaTeX and PDF, HTML, Markdown; one or a whole folder."""

from ecgchat_lib.report.escaping import escape
from ecgchat_lib.report.html import report_html
from ecgchat_lib.report.latex import compile_pdf, find_engines, render_latex
from ecgchat_lib.report.markdown import report_markdown
from ecgchat_lib.report.patient import read_patient
from ecgchat_lib.report.sections import ModelAnswer, PatientDetails, Report, build_report
from ecgchat_lib.report.write import make_report, write_report

__all__ = [
    "ModelAnswer",
    "PatientDetails",
    "Report",
    "build_report",
    "compile_pdf",
    "escape",
    "find_engines",
    "make_report",
    "read_patient",
    "render_latex",
    "report_html",
    "report_markdown",
    "write_report",
]
