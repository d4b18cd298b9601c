"""One BLAS thread where matrices are so small that several would only wait for each other.

With two processes on two cores, the threads that numpy starts by default make small products several times slower.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # looks for the loaded libraries, once


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which BLAS uses one thread; what was set before is set again after it."""
    return _controller().limit(limits=1, user_api="blas")
