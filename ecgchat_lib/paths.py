"""Where the project's files are, whatever folder a notebook or command is started in.

`project_root()` is the folder with `course.yml`; `output_folder()` is where runs write, never the tracked tree.
"""

from __future__ import annotations

import os
from pathlib import Path

from ecgchat_lib.errors import MissingPartError


def project_root() -> Path:
    """Return the folder that holds `course.yml`: `ECGCHAT_HOME` if set, else the parent of this package.

    Raises:
        MissingPartError: there is no `course.yml` there (the package was installed without its project).
    """
    root = Path(os.environ.get("ECGCHAT_HOME") or Path(__file__).resolve().parent.parent)
    if not (root / "course.yml").is_file():
        raise MissingPartError(
            "course.yml",
            f"not in {root}",
            "Set ECGCHAT_HOME to a clone of the project, or install the clone with 'pip install -e .'",
        )
    return root


def data_folder() -> Path:
    """Return the project's `data/` folder (cards, sample records, mini weights, recorded results)."""
    return project_root() / "data"


def output_folder() -> Path:
    """Return the folder that runs write to: `ECGCHAT_OUT` if set, else `out/` in the project; made if missing."""
    out = Path(os.environ.get("ECGCHAT_OUT") or project_root() / "out")
    out.mkdir(parents=True, exist_ok=True)
    return out


def cache_folder() -> Path:
    """Return the folder for what can be made again: `ECGCHAT_CACHE`, else `ecgchat` in the user's cache folder."""
    base = os.environ.get("ECGCHAT_CACHE")
    if base is None:
        base = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ecgchat")
    folder = Path(base)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
