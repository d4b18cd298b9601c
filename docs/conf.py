"""Sphinx settings of the course's site: stored notebooks, no execution, nothing fetched, formulas as MathML."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml

project = "ECG-Chat, rebuilt"
author = "The ECG-Chat course"
copyright = "CC BY 4.0 (text), Apache-2.0 (code)"
language = "en"

extensions = ["myst_nb"]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
html_math_renderer = "mathml"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_repository_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
}

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]


def _formula(self: Any, node: nodes.Element, block: bool) -> None:
    """Write a formula as MathML, which browsers show by themselves: MathJax would come from another server."""
    try:
        tree = latex2mathml.tex2mathml(node.astext(), as_block=block)
    except Exception:  # a command that docutils doesn't know: show the formula as it is written
        tree = f"<code>{self.encode(node.astext())}</code>"
    self.body.append(f'<div class="math">{tree}</div>' if block else f'<span class="math">{tree}</span>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the formula writer."""
    inline = (lambda self, node: _formula(self, node, False), None)
    block = (lambda self, node: _formula(self, node, True), None)
    app.add_html_math_renderer("mathml", inline, block)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
