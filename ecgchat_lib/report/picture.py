"""Pictures of a report: a PDF's first page by pdfium, and the tracing as SVG, PNG or PDF. Taught in: 13 §7"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.recording import Recording

DRAWING = threading.Lock()  # matplotlib's fonts, mathematics and settings aren't made for threads
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_KEPT = {"svg", "g", "path", "use", "defs", "clipPath", "rect"}  # what a drawing is made of; all else is left out
_TITLE_LIMIT = 60  # characters of the recording's name that are drawn


class Svg(str):
    """A picture that may stand in a page as it is; only `tracing_svg` makes it."""

    __slots__ = ()


def page_picture(pdf: Path, *, dpi: int = 100) -> NDArray[np.uint8]:
    """Return the first page as an array `(height, width, 3)`.

    Args:
        pdf: the file.
        dpi: pixels per inch.

    Raises:
        EcgChatError: the file isn't a PDF with a page.
    """
    import numpy as np
    import pypdfium2

    from ecgchat_lib.errors import EcgChatError

    try:
        with pypdfium2.PdfDocument(pdf) as document:
            picture = document[0].render(scale=dpi / 72).to_pil().convert("RGB")
    except (pypdfium2.PdfiumError, IndexError) as error:
        raise EcgChatError(f"{pdf}: not a PDF with a page ({error}). Make it again with 'ecgchat report'") from error
    return np.asarray(picture)


def draw_tracing(recording: Recording) -> Figure:
    """Return the recording on ECG paper, its name in letters that the drawing's font has."""
    from ecgchat_lib.ecg.paper import draw_paper
    from ecgchat_lib.report.escaping import plain, shorten

    return draw_paper(recording, title=plain(shorten(recording.name, _TITLE_LIMIT)) or None)


def save_tracing(recording: Recording, path: Path, *, dpi: int = 120) -> None:
    """Draw the recording on ECG paper into a PDF or PNG file without dates: the same recording gives the same bytes.

    Args:
        recording: the recording.
        path: a file ending in .pdf or .png.
        dpi: pixels per inch of a PNG.
    """
    nothing = {".pdf": ("Creator", "Producer", "CreationDate"), ".png": ("Software",)}[path.suffix]
    with DRAWING:
        draw_tracing(recording).savefig(path, metadata=dict.fromkeys(nothing), dpi=dpi)


def tracing_svg(recording: Recording, title: str, description: str, *, prefix: str = "tracing") -> Svg:
    """Draw the recording on ECG paper as an SVG element for the inside of an HTML page.

    Args:
        recording: the recording.
        title: its name for those who can't see it, `<title>`.
        description: the tracing in words, `<desc>`.
        prefix: of the ids in it, so that several can stand in one page.

    Returns:
        One `<svg>` element without styles of its own, scripts, links to outside, comments or dates.
    """
    import io
    from xml.etree import ElementTree

    import matplotlib

    from ecgchat_lib.report.escaping import visible

    drawn = io.BytesIO()
    with DRAWING, matplotlib.rc_context({"svg.hashsalt": "ecgchat", "svg.fonttype": "path"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw_tracing(recording).savefig(drawn, format="svg", metadata=nothing)
    root = ElementTree.fromstring(drawn.getvalue())  # matplotlib's own, not a user's
    _clean(root, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{prefix}-title {prefix}-words",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", id=f"{prefix}-{'words' if place else 'title'}")
        element.text = visible(words)
        root.insert(place, element)
    ElementTree.register_namespace("", _SVG)
    return Svg(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: Element, prefix: str) -> None:
    """Keep a drawing's own elements only; links stay inside the picture, and ids are the page's own."""
    for child in list(element):
        if child.tag.rpartition("}")[2] not in _KEPT:
            element.remove(child)
        else:
            _clean(child, prefix)
    link = element.attrib.pop(_LINK, None)
    if link is not None:
        element.set("href", f"#{prefix}-{link.lstrip('#')}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{prefix}-"))
    if "id" in element.attrib:
        element.set("id", f"{prefix}-{element.attrib['id']}")
    element.text = element.tail = None
