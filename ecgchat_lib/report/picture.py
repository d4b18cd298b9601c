"""A PDF's first page as a picture, by pdfium. Taught in: 13 §6"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
