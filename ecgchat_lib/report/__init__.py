"""From a recording to a one-page report: sections, LaTeX, PDF."""

from ecgchat_lib.report.escaping import escape
from ecgchat_lib.report.grounding import Contradiction, contradictions
from ecgchat_lib.report.latex import compile_pdf, find_engines, render_latex
from ecgchat_lib.report.markdown import report_markdown
from ecgchat_lib.report.sections import ModelAnswer, PatientDetails, Report, build_report
from ecgchat_lib.report.write import make_report, write_report

__all__ = [
    "Contradiction",
    "ModelAnswer",
    "PatientDetails",
    "Report",
    "build_report",
    "compile_pdf",
    "contradictions",
    "escape",
    "find_engines",
    "make_report",
    "render_latex",
    "report_markdown",
    "write_report",
]
