"""Say, sample by sample, what a lead shows: nothing, P wave, QRS complex or T wave. A small network, run with numpy.

The network is a one-dimensional U-Net of some 160,000 numbers per member, small enough to be read here from top to
bottom; no network framework is needed. It sees one lead at a time and knows nothing of beats, rhythm or patients;
`delineate.py` makes marks of its probabilities. It is trained by `datasets/segment_recipe.py`. After Ronneberger et al.
2015 (U-Net, doi:10.1007/978-3-319-24574-4_28) and Moskalenko et al. 2020 (segmenting ECGs with one,
doi:10.1007/978-3-030-30425-6_29). Taught in: 03 §3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.filters import bandpass, fill_missing, remove_spikes, resample
from ecgchat_lib.errors import MissingPartError, ParameterError
from ecgchat_lib.paths import data_folder
from ecgchat_lib.threads import one_blas_thread

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEGMENT_FS = 250.0  # Hz, of what the network sees
SEGMENT_BAND = (0.5, 40.0)  # Hz
CLASSES: tuple[str, ...] = ("none", "P", "QRS", "T")
WEIGHTS = "ecg-segment-mini/model.safetensors"
PIECE, MARGIN = 15_360, 768  # samples: a minute at a time, and three seconds on either side; multiples of 2**depth
STILL_MV = 1e-3  # a lead with a smaller standard deviation isn't scaled up

Layers = dict[str, "tuple[NDArray[np.float32], NDArray[np.float32]]"]


@dataclass(frozen=True)
class SegmentingNetwork:
    """The trained network: several members of one shape, whose probabilities are averaged.

    Attributes:
        members: for each, layer name to weight `(out, in, width)` and bias `(out,)`, float32; the normalization of
            training is already multiplied in.
    """

    members: tuple[Layers, ...]

    def probabilities(self, leads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability of each of `CLASSES` at each sample.

        Args:
            leads: `(lead, time)` at `SEGMENT_FS`, from `segment_input`.

        Returns:
            float32 `(lead, 4, time)`; the four add up to 1.
        """
        step = 2 ** depth(self.members[0])
        time = leads.shape[-1]
        padded = np.pad(leads, ((0, 0), (0, -time % step)))[:, None]
        result = np.empty((len(leads), len(CLASSES), padded.shape[-1]), dtype=np.float32)
        for start in range(0, time, PIECE):  # a long recording piece by piece, each with what stands around it
            first, last = max(start - MARGIN, 0), min(start + PIECE + MARGIN, padded.shape[-1])
            piece = padded[:, :, first:last]
            with one_blas_thread():
                found = np.mean([_softmax(_forward(member, piece)) for member in self.members], axis=0)
            result[:, :, start : start + PIECE] = found[:, :, start - first : start - first + PIECE]
        return result[:, :, :time]


def segment_signal(signal: NDArray[np.floating], fs: float) -> NDArray[np.float32]:
    """Return a signal at `SEGMENT_FS`, without drift and what lies above 40 Hz.

    Args:
        signal: `(lead, time)` in mV, from `without_spikes`.
        fs: Hz.

    Returns:
        float32 `(lead, time at SEGMENT_FS)` in mV.
    """
    return bandpass(resample(signal, fs, SEGMENT_FS), SEGMENT_FS, *SEGMENT_BAND)


def without_spikes(signal: NDArray[np.floating], fs: float) -> NDArray[np.float64]:
    """Return `(lead, time)` without pacemaker spikes; missing samples (NaN) are bridged by straight lines."""
    return fill_missing(remove_spikes(signal, fs))[0]


def segment_input(clean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what `segment_signal` gave with each lead at unit variance, as the network was trained."""
    return clean / np.maximum(clean.std(axis=-1, keepdims=True), STILL_MV)


@lru_cache(maxsize=1)
def load_segmenting_network(path: Path | None = None) -> SegmentingNetwork:
    """Read the network's weights; the shipped ones if no path is given.

    Raises:
        MissingPartError: the file is missing or isn't a set of such weights.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = path or data_folder() / "weights" / WEIGHTS
    remedy = "Restore it from the project, or train it with python -m ecgchat_lib.datasets.segment_recipe"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MissingPartError(str(path), f"can't be read ({type(error).__name__})", remedy) from None
    members: dict[int, Layers] = {}
    for name in tensors:
        member, _, rest = name.partition(".")
        layer, _, part = rest.rpartition(".")
        if part == "weight":
            bias = tensors.get(f"{member}.{layer}.bias")
            if not member.isdigit() or bias is None:
                raise MissingPartError(str(path), f"an unexpected tensor {name[:60]!r}", remedy)
            pair = (tensors[name].astype(np.float32), bias.astype(np.float32))
            members.setdefault(int(member), {})[layer] = pair
    if not members:
        raise MissingPartError(str(path), "no weights in it", remedy)
    return SegmentingNetwork(tuple(members[number] for number in sorted(members)))


# --- the network, from top to bottom -----------------------------------------------------------------------------


def depth(layers: Layers) -> int:
    """Return how often the network halves the sampling rate."""
    return sum(name.startswith("down") for name in layers)


def _forward(layers: Layers, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scores `(lead, 4, time)` of one member for `(lead, 1, time)`; time is a multiple of 2**depth."""
    levels = depth(layers)
    kept = []
    for level in range(levels):  # down: half as many samples, more channels, and each sees twice as far
        x = _relu(convolve(x, *layers[f"down.{level}"], stride=2))
        x = x + _relu(convolve(x, *layers[f"encode.{level}"]))
        kept.append(x)
    for level in reversed(range(levels - 1)):  # up again, with the detail that was kept on the way down
        x = np.repeat(_relu(convolve(x, *layers[f"up.{level}"])), 2, axis=-1) + kept[level]
        x = x + _relu(convolve(x, *layers[f"decode.{level}"]))
    scores = convolve(x, *layers["head"])  # (lead, 4 classes * 2 samples, time / 2)
    leads, _, half = scores.shape
    return scores.reshape(leads, len(CLASSES), 2, half).swapaxes(2, 3).reshape(leads, len(CLASSES), 2 * half)


def convolve(
    x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32], *, stride: int = 1
) -> NDArray[np.float32]:
    """Slide `weight` along `x`, with zeros beyond both ends: one matrix product over all places at once.

    Args:
        x: `(lead, in, time)`.
        weight: `(out, in, width)`, of odd width.
        bias: `(out,)`.
        stride: the step from one place to the next.

    Returns:
        `(lead, out, ceil(time / stride))`.

    Raises:
        ParameterError: the number of channels doesn't fit.
    """
    out, channels, width = weight.shape
    if x.shape[1] != channels:
        raise ParameterError(f"convolution: {x.shape[1]} channels, expected {channels}")
    leads, _, time = x.shape
    reach, places = width // 2, (time + stride - 1) // stride
    padded = np.zeros((leads, channels, time + 2 * reach), dtype=np.float32)
    padded[:, :, reach : reach + time] = x
    columns = np.empty((leads, width * channels, places), dtype=np.float32)
    for k in range(width):
        columns[:, k * channels : (k + 1) * channels] = padded[:, :, k : k + (places - 1) * stride + 1 : stride]
    result = weight.transpose(0, 2, 1).reshape(out, width * channels) @ columns
    result += bias[:, None]
    return result


def _relu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Set what is negative to 0, in place."""
    return np.maximum(x, 0, out=x)


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
