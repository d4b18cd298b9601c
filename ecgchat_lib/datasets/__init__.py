"""Many recordings: one manifest from each dataset, synthetic ECGs, reports and labels.

`load("ptbxl", folder)` reads any of six datasets. The loaders themselves stand in `loaders.LOADERS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgchat_lib.datasets.manifest import Manifest


def load(name: str, folder: str | Path, **options: Any) -> Manifest:
    """Load a dataset as a manifest; see `ecgchat_lib.datasets.loaders.load`, which is imported when it is needed."""
    from ecgchat_lib.datasets import loaders

    return loaders.load(name, folder, **options)
