"""The curve of a training, live and kept: one JSON object per step in `curve.jsonl`, and TensorBoard's event files.

Both follow the training's own state: after a kill they are cut back to the step that the state is at, so no step stands
there twice. They are for the eye; what a resume needs is in the state. Taught in: 07 §7.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ecgchat_lib.errors import EcgChatError, MissingPartError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CURVE, EVENTS = "curve.jsonl", "tensorboard"


class Curves:
    """Where a training's numbers go while it runs.

    Args:
        folder: holds `curve.jsonl`, and `tensorboard/` if asked for.
        history: the entries up to now, one per step: what a kill left behind them is dropped.
        tensorboard: write event files too; if TensorBoard isn't installed, a warning says so and the run goes on.
    """

    def __init__(self, folder: Path, history: Sequence[Mapping[str, float]], *, tensorboard: bool = False) -> None:
        self.path = folder / CURVE
        self._rewrite(history)
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._writer = _event_writer(folder / EVENTS, len(history)) if tensorboard else None

    def _rewrite(self, history: Sequence[Mapping[str, float]]) -> None:
        temporary = self.path.with_name(self.path.name + ".part")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(step, entry) for step, entry in enumerate(history, start=1))
        os.replace(temporary, self.path)

    def add(self, step: int, entry: Mapping[str, float]) -> None:
        """Write the numbers of a step (counted from 1) where others can read them at once."""
        self._file.write(_line(step, entry))
        self._file.flush()
        if self._writer is not None:
            for name, value in entry.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def _line(step: int, entry: Mapping[str, float]) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in entry.items()}
    return json.dumps({"step": step, **finite}) + "\n"


def _event_writer(folder: Path, done: int) -> SummaryWriter | None:
    """Return TensorBoard's writer, told to forget the steps after `done`; None, with a warning, if it isn't there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn(
            f"TensorBoard isn't installed, so only {CURVE} is written. Install it with: pip install 'ecgchat[train]'",
            stacklevel=2,
        )
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Return the entries of a `curve.jsonl`, one per step; a line that a kill cut off at the end is left out.

    Raises:
        MissingPartError: there is no curve in the folder.
        EcgChatError: a line isn't one of ours.
    """
    path = folder / CURVE
    if not path.is_file():
        raise MissingPartError(str(path), "no such file", "Name the folder of a training that has begun")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise EcgChatError(f"{path}: not a curve ({error}). Resume the training: it writes the file anew.") from error
