"""Where the waves of a recording are: onset, peak and offset of each P wave, QRS complex and T wave.

Marks come from cardiologists (LUDB's annotation files), from the synthetic generator, which knows them, or from
`segment.py`, which looks for them. Times only; amplitudes and intervals are `measure.py`'s. Taught in: 03 §1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.errors import ParameterError, RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray

WAVES: tuple[str, ...] = ("P", "QRS", "T")
_SYMBOLS = {"p": "P", "N": "QRS", "t": "T"}  # LUDB's annotation symbols


def _none() -> NDArray[np.float64]:
    return np.zeros((0, 3))


@dataclass(frozen=True)
class WaveMarks:
    """The marked waves of one recording, or of one lead of it.

    Attributes:
        p: float64 `(wave, 3)`: onset, peak and offset in samples from the start of the recording, in order of time;
            fractions are possible, NaN where a point isn't marked.
        qrs: the same for QRS complexes; the peak is the R peak's place (or the largest deflection's).
        t: the same for T waves.
    """

    p: NDArray[np.float64] = field(default_factory=_none)
    qrs: NDArray[np.float64] = field(default_factory=_none)
    t: NDArray[np.float64] = field(default_factory=_none)

    def __post_init__(self) -> None:
        for name, wave in zip(WAVES, (self.p, self.qrs, self.t), strict=True):
            if wave.ndim != 2 or wave.shape[1] != 3:
                raise ParameterError(f"marks of {name}: shape {wave.shape}, expected (wave, 3): onset, peak, offset")

    def wave(self, name: str) -> NDArray[np.float64]:
        """Return the marks of "P", "QRS" or "T", `(wave, 3)`."""
        return {"P": self.p, "QRS": self.qrs, "T": self.t}[name]


def read_marks(record: str | Path, extension: str) -> WaveMarks:
    """Read one lead's marks from a WFDB annotation file in LUDB's manner: `(`, a peak `p`, `N` or `t`, `)`.

    Args:
        record: path of the record without extension.
        extension: the annotation file's, which in LUDB is the lead's name in small letters, such as "ii".

    Raises:
        RecordError: the file is missing or isn't an annotation file.
    """
    import wfdb

    try:
        marks = wfdb.rdann(str(record), extension)
    except Exception as error:
        found = f"no readable annotations ({type(error).__name__})"
        raise RecordError(f"{record}.{extension}", found, "Get the file again") from None
    samples, symbols = np.asarray(marks.sample, dtype=float), list(marks.symbol)
    waves: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAVES}
    for k, symbol in enumerate(symbols):
        if symbol in _SYMBOLS:
            onset = samples[k - 1] if k > 0 and symbols[k - 1] == "(" else np.nan
            offset = samples[k + 1] if k + 1 < len(symbols) and symbols[k + 1] == ")" else np.nan
            waves[_SYMBOLS[symbol]].append((onset, samples[k], offset))
    p, qrs, t = (np.array(waves[name], dtype=np.float64).reshape(-1, 3) for name in WAVES)
    return WaveMarks(p, qrs, t)
