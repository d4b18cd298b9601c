"""For every test, of the library and (nbval) of the notebooks: no network, and nothing written into the project.

`pytest --nbval ... --other-cpu` runs the kernels with another instruction set than this CPU's best, and one thread.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest_socket

from ecgchat_lib.course.kernel import kernel_environment

LOCAL = ["127.0.0.1", "localhost", "::1"]  # Jupyter talks to its kernels over the loopback interface

_OUT = tempfile.TemporaryDirectory(prefix="ecgchat-tests-")  # one for each process, so for each xdist worker


def pytest_addoption(parser: Any) -> None:
    """Add the one option."""
    parser.addoption("--other-cpu", action="store_true", help="kernels use another instruction set and one thread")


def pytest_configure(config: Any) -> None:
    """Give kernels, which inherit this environment, the same rules: blocked network, quiet, own output folder."""
    os.environ.pop("ECGCHAT_EXPLICIT", None)
    os.environ.update(kernel_environment(Path(__file__).parent, Path(_OUT.name), block_network=True))
    if config.getoption("--other-cpu"):
        os.environ.update(other_cpu())


def pytest_unconfigure() -> None:
    """Remove what the tests wrote."""
    _OUT.cleanup()


def pytest_runtest_setup() -> None:
    """Block before each test: pytest-socket lifts its block after each."""
    pytest_socket.socket_allow_hosts(LOCAL, allow_unix_socket=True)


def other_cpu() -> dict[str, str]:
    """Return settings that make torch, oneDNN and OpenBLAS compute as on an older CPU: AVX2, or on AVX2 SSE4."""
    flags = Path("/proc/cpuinfo")
    newer = flags.is_file() and "avx512f" in flags.read_text()
    torch, onednn, blas = ("avx2", "AVX2", "Haswell") if newer else ("default", "SSE41", "Nehalem")
    return {
        "ATEN_CPU_CAPABILITY": torch,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "OPENBLAS_CORETYPE": blas,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
