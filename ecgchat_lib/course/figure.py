"""Figures as named functions: each has an id, a caption, alt text computed from its data, and a digest of that data.

`run.show(function, ...)` in a notebook saves the picture and its sidecar and displays it. Nothing here draws ECGs;
the figures themselves are in `ecgchat_lib/course/figures/fNN.py`.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ecgchat_lib.errors import EcgChatError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
SHORTEST_ALT = 40

# One look for all figures: colors that color-blind readers tell apart (Okabe and Ito), nothing but what is needed.
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": "cycler('color', ['0072B2', 'D55E00', '009E73', 'CC79A7', '56B4E9', 'E69F00', '000000'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "ecgchat",
}


@dataclass(frozen=True)
class FigureResult:
    """What a figure function returns.

    Attributes:
        figure: the matplotlib figure.
        alt: the figure in words for someone who can't see it, with numbers computed from the data; 40 characters or
            more. Numbers from float32 training are rounded coarsely, so that the text holds on every machine.
        data: what the digest is computed from: integers, texts, float64 and arrays of them, in lists and dictionaries.
    """

    figure: Figure
    alt: str
    data: Any


class FigureFunction(Protocol):
    """A function marked with `@figure`."""

    figure_id: str
    caption: str
    __name__: str

    def __call__(self, *args: Any, **kwargs: Any) -> FigureResult:
        """Draw the figure in the course's style and check its alt text."""
        ...


REGISTRY: dict[str, FigureFunction] = {}


def figure(figure_id: str, caption: str) -> Callable[[Callable[..., FigureResult]], FigureFunction]:
    """Mark a function as the maker of figure `figure_id` ("07.1"); it is called in the course's style and checked."""

    def mark(function: Callable[..., FigureResult]) -> FigureFunction:
        @wraps(function)
        def drawn(*args: Any, **kwargs: Any) -> FigureResult:
            import matplotlib

            with matplotlib.rc_context(STYLE):
                result = function(*args, **kwargs)
            alt = " ".join(result.alt.split())
            if len(alt) < SHORTEST_ALT or alt.rstrip(".") == caption.rstrip("."):
                raise EcgChatError(
                    f"figure {figure_id}: the alt text must tell, in {SHORTEST_ALT} characters or more, "
                    f"what the picture shows, and not repeat the caption; found: '{alt}'"
                )
            return FigureResult(result.figure, alt, result.data)

        drawn.figure_id, drawn.caption = figure_id, caption  # type: ignore[attr-defined]
        known = REGISTRY.get(figure_id)
        if known is not None and (known.__module__, known.__name__) != (function.__module__, function.__name__):
            raise EcgChatError(f"figure {figure_id} is made by both {known.__name__} and {function.__name__}")
        REGISTRY[figure_id] = drawn  # type: ignore[assignment]
        return drawn  # type: ignore[return-value]

    return mark


def digest(data: object) -> str:
    """Return 12 hexadecimal digits that tell whether the data behind a figure are the same; floats count to 0.001."""
    return hashlib.sha256(json.dumps(_canonical(data), sort_keys=True).encode()).hexdigest()[:12]


def _canonical(value: object) -> object:
    """The value as JSON with floats as whole thousandths, so that neither -0.0 nor the last digits matter."""
    import numpy as np

    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return ["nan"] if np.isnan(value) else ["milli", str(value) if np.isinf(value) else round(float(value) * 1000)]
    if is_dataclass(value) and not isinstance(value, type):
        return _canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "values": [_canonical(item) for item in value.reshape(-1).tolist()]}
    raise EcgChatError(f"a figure's data may hold numbers, texts, arrays, lists and dictionaries, not {type(value)}")


def file_stem(function: FigureFunction) -> str:
    """Return the file name of a figure without extension: `07_1_loss_curve`."""
    return f"{function.figure_id.replace('.', '_')}_{function.__name__}"


def png_bytes(drawn: Figure) -> bytes:
    """Return a PNG of at most 100 dpi, the same bytes each time: no metadata, one palette of 256 colors."""
    import matplotlib
    from PIL import Image

    raw = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        drawn.savefig(raw, format="png", dpi=min(DPI, drawn.dpi), metadata={"Software": None}, bbox_inches="tight")
    small = io.BytesIO()
    picture = Image.open(raw).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def save(function: FigureFunction, result: FigureResult, folder: Path) -> tuple[bytes, dict[str, str]]:
    """Write `NN_k_name.png` and its sidecar `.json` into `folder`; return the picture and the sidecar."""
    picture = png_bytes(result.figure)
    sidecar = {
        "id": function.figure_id,
        "caption": function.caption,
        "alt": result.alt,
        "digest": digest(result.data),
        "made_by": f"{function.__module__}.{function.__name__}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{file_stem(function)}.png", picture)
    text = json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / f"{file_stem(function)}.json", text.encode())
    return picture, sidecar


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
