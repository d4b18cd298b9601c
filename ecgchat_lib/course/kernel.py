"""The environment in which notebooks run headlessly: clean, quiet, deterministic, with its own output folder.

Used by the builder and the runner. It changes `os.environ` only inside a `with`.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgchat_lib.course.run import QUIET

KEPT = {
    *("PATH", "HOME", "USER", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "APPDATA", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "HF_HOME", "ECGCHAT_CACHE"),
}


def kernel_environment(root: Path, out: Path, *, block_network: bool) -> dict[str, str]:
    """Return what to set in the environment of a kernel: the project, where to write, quiet libraries, no network."""
    values = QUIET | {"ECGCHAT_HOME": str(root), "ECGCHAT_OUT": str(out), "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
    values |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "NO_COLOR": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    if block_network:
        values["ECGCHAT_BLOCK_NETWORK"] = "1"
    return values


@contextmanager
def environment(values: dict[str, str], *, clean: bool = False) -> Iterator[None]:
    """Set environment variables (a kernel inherits them) and put everything back at the end.

    Args:
        values: what to set.
        clean: keep nothing else of the environment but what programs need to run at all.
    """
    before = dict(os.environ)
    if clean:
        for name in set(before) - KEPT:
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
