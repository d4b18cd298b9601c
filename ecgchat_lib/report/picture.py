"""A PDF's first page as a picture, where a program for it is installed. Taught in: 13 §6"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def page_picture(pdf: Path, *, dpi: int = 100, seconds: float = 30.0) -> NDArray[np.uint8] | None:
    """Return the first page as an array `(height, width, 3)`.

    Args:
        pdf: the file.
        dpi: pixels per inch.
        seconds: how long the program may take.

    Returns:
        The picture, or None if `pdftoppm` (of poppler-utils) isn't installed or can't read the file.
    """
    program = shutil.which("pdftoppm")
    if program is None:
        return None
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-r", str(dpi), "-png", "-f", "1", "-l", "1", "-singlefile", str(pdf), f"{folder}/page"]
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        page = Path(folder) / "page.png"
        if done.returncode != 0 or not page.is_file():
            return None
        return np.asarray(Image.open(page).convert("RGB"))
