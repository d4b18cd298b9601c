"""Judge whether a recording can be trusted, and say what is wrong with it in words.

Rules with stated limits, but for electrodes in each other's place, which a small linear model finds (`reversal.py`). It
judges the recording and never the heart: what it calls doubtful may be a disease, and it says so where that happens.
`benchmarks/quality.py` measures how often it is right. Taught in: 01 §8.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from ecgchat_lib.ecg.beats import find_r_peaks
from ecgchat_lib.ecg.filters import fill_missing, find_spikes, remove_spikes
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.reversal import BEAT_FS, BEFORE, CHEST_SWAPS, FLAT_SWAPS, AverageBeat, average_beat, find_reversal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.recording import Recording

LEAST_SECONDS = 1.0  # less holds no heartbeat
SHORT_SECONDS = 5.0  # less holds too few beats for a rhythm
SLOWEST_HZ = 40.0
MOST_MISSING = 0.5  # of the samples
FLAT_MV = 0.02  # a lead that moves less from its 1st to its 99th percentile in the best second is flat
MOST_FLAT = 3  # leads
FLAT_SECONDS = 2.0  # that a lead lies exactly still, though it lives elsewhere
CLIPPED_SECONDS = 0.02  # that a lead stays exactly at its highest or lowest value,
CLIPPED_TIMES = 3  # so often at least,
LONG_CLIPPED_SECONDS = 0.2  # or so long in all
HUGE_MV = 8.0  # heartbeats higher than that are a wrong gain
MOST_HUGE = 6  # leads
MOST_MV = 1e6  # what is farther off counts as that, so that nothing overflows
TINY_MV = 0.15  # and lower than that in every lead, too
HUM_MV = 0.025  # amplitude of the mains' sine
NOISE_MV = 0.025  # root mean square above 40 Hz, without the mains, between the beats
BURST_MV = 0.08  # the same in the worst second
WANDER_MV = 1.5  # range of the baseline below 0.5 Hz
JUMP_MV = 0.7  # the level of a second against that of the second before
IDENTITY_FRACTION = 0.15  # of the limb leads' size, that an identity may be off
TWIN_FRACTION = 0.01  # of a lead's size, that its neighbor differs from it
SPIKES_PER_SECOND = 0.5
PLACED_HZ = 80.0  # below, the QRS complexes are too coarse for the model of exchanged electrodes
LEAST_LIKENESS = 0.8  # of the QRS complexes to their average
MOST_OF_ONE_SOURCE = 0.985  # of what all leads show: a heart, being three-dimensional, leaves more to a second source
MOST_STEP = 0.58  # of the QRS complexes' height that remains after them; 0.53 in a ventricular tachycardia

Severity = Literal["warn", "abstain"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a recording.

    Attributes:
        kind: "short", "slow", "missing", "flat", "still", "clipped", "huge", "tiny", "mains", "muscle", "burst",
            "wander", "jump", "spikes", "identity", "twins", "reversal" or "not_an_ecg".
        severity: "warn" (read it with this in mind) or "abstain" (nothing should be concluded from it).
        words: a sentence without its full stop.
        leads: those concerned; empty for the whole recording.
        number: what was found, in `unit`.
        limit: what it was compared with.
        unit: "mV", "s", "Hz", "%", …, or "" for a plain number.
    """

    kind: str
    severity: Severity
    words: str
    leads: tuple[str, ...] = ()
    number: float | None = None
    limit: float | None = None
    unit: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return every field under its name, ready for JSON."""
        return {**asdict(self), "leads": list(self.leads)}


@dataclass(frozen=True)
class Quality:
    """The verdict on a recording.

    Attributes:
        usable: whether measurements and models have something to work on.
        warnings: what is wrong, in plain words, the gravest first; empty for a good recording.
        findings: the same with numbers.
    """

    usable: bool
    warnings: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the recording isn't usable, in words; empty if it is."""
        if self.usable:
            return ()
        return tuple(item.words for item in self.findings if item.severity == "abstain") or self.warnings

    def as_dict(self) -> dict[str, object]:
        """Return `usable` and the findings, ready for JSON."""
        return {"usable": self.usable, "findings": [item.as_dict() for item in self.findings]}


def judge(recording: Recording) -> Quality:
    """Judge a recording.

    Args:
        recording: twelve leads in mV.

    Returns:
        The findings, and `usable=False` where one of them is of severity "abstain": most leads flat or missing, limb
        leads that contradict each other, impossible voltages, no heartbeats, or too short for one.
    """
    filled, missing = fill_missing(recording.signal)
    filled = filled.clip(-MOST_MV, MOST_MV)
    dead = flat_leads(recording)
    found = [*_length(recording), *_gaps(missing), *_flat(filled, recording.fs, dead)]
    if recording.fs >= SLOWEST_HZ and filled.shape[1] > 2:
        found += _look(filled, recording.fs, dead)
    found.sort(key=lambda item: item.severity)  # "abstain" stands before "warn"; the order is kept otherwise
    return Quality(
        usable=not any(item.severity == "abstain" for item in found),
        warnings=tuple(item.words for item in found),
        findings=tuple(found),
    )


def flat_leads(recording: Recording) -> tuple[str, ...]:
    """Return the leads that show next to nothing: not even 20 microvolts in their liveliest second."""
    thin = max(1, int(recording.fs / 125))  # 125 samples a second are enough to see a QRS complex
    signal = fill_missing(recording.signal[:, ::thin])[0]
    second = max(1, round(recording.fs / thin))
    whole = signal.shape[1] // second * second
    pieces = [signal[:, :whole].reshape(len(LEADS), -1, second), signal[:, None, whole:]]
    ranges = [np.ptp(np.percentile(piece, (1, 99), axis=-1), axis=0) for piece in pieces if piece.size]
    liveliest = np.concatenate([np.zeros((len(LEADS), 1)), *ranges], axis=1).max(axis=1)
    return tuple(lead for lead, span in zip(LEADS, liveliest, strict=True) if span < FLAT_MV)


def identity_residuals(signal: NDArray[np.floating]) -> dict[str, float]:
    """Return how far the limb leads are from Einthoven's and Goldberger's identities.

    Args:
        signal: `(12, time)` in mV, in the order of `LEADS`, without NaN.

    Returns:
        "Einthoven" (I + III - II) and "Goldberger" (aVR + aVL + aVF): root mean square of what should be zero, as a
        fraction of the root mean square of the leads in it. Zero for leads that were derived from each other.
    """
    lead = {name: np.asarray(row, dtype=np.float64) for name, row in zip(LEADS, signal, strict=True)}

    def fraction(rest: NDArray[np.float64], parts: tuple[str, ...]) -> float:
        size = float(np.sqrt(np.mean([np.mean(lead[name] ** 2) for name in parts])))
        return float(np.sqrt(np.mean(rest**2))) / size if size > 0 else 0.0

    return {
        "Einthoven": fraction(lead["I"] + lead["III"] - lead["II"], ("I", "II", "III")),
        "Goldberger": fraction(lead["aVR"] + lead["aVL"] + lead["aVF"], ("aVR", "aVL", "aVF")),
    }


@dataclass(frozen=True)
class Bands:
    """A signal taken apart by frequency, without delay.

    Attributes:
        drift: `(lead, time)` below 0.5 Hz, at 12.5 Hz.
        beats: `(lead, time)` from 0.5 to 40 Hz, at `BEAT_FS`.
        noise: `(lead, time)` above 40 Hz without the mains, at the signal's own rate; None up to 100 Hz.
    """

    drift: NDArray[np.float64]
    beats: NDArray[np.float64]
    noise: NDArray[np.float64] | None


DRIFT_FS = 12.5


def split_bands(signal: NDArray[np.floating], fs: float) -> Bands:
    """Take a signal apart by frequency, by one Fourier transform of it and three back.

    Args:
        signal: `(lead, time)` in mV, without NaN.
        fs: Hz.
    """
    from scipy import fft

    n = signal.shape[1]
    padding = min(n - 1, round(fs))
    x = np.asarray(signal - signal[:, :1], dtype=np.float32)  # less rounding: electrodes' offsets may be large
    before, after = 2 * x[:, :1] - x[:, padding:0:-1], 2 * x[:, -1:] - x[:, -2 : -padding - 2 : -1]
    size = fft.next_fast_len(n + 2 * padding, real=True)
    x = np.concatenate([before, x, after, np.repeat(after[:, -1:], size - n - 2 * padding, axis=1)], axis=1)
    spectrum = fft.rfft(x, axis=1)
    f = fft.rfftfreq(size, 1 / fs)
    low = 1 / np.sqrt(1 + (f / 0.5) ** 4)  # a second-order Butterworth's gain
    high = np.clip((f - 40.0) / 10.0, 0, 1)  # the bands meet between 40 and 50 Hz

    def back(gain: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
        samples = max(round(size * rate / fs), 1)
        kept = min(samples // 2 + 1, len(f))
        out = fft.irfft(spectrum[:, :kept] * gain[:kept].astype(np.float32), samples, axis=1) * (samples / size)
        start = round(padding * rate / fs)
        return out[:, start : start + max(round(n * rate / fs), 1)]

    mains = np.any([np.abs(f - k) <= 1.0 for k in (50, 60, 100, 120, 150, 180)], axis=0)
    noise = back(np.where(mains, 0.0, high), fs) if fs > 100 else None
    return Bands(back(low, DRIFT_FS), back((1 - low) * (1 - high), BEAT_FS), noise)


def _length(recording: Recording) -> list[Finding]:
    found = []
    seconds = recording.seconds
    if seconds < LEAST_SECONDS:
        found.append(Finding("short", "abstain", f"only {seconds:.2f} s long", (), seconds, LEAST_SECONDS, "s"))
    elif seconds < SHORT_SECONDS:
        words = f"only {seconds:.1f} s long, too short to judge the rhythm"
        found.append(Finding("short", "warn", words, (), seconds, SHORT_SECONDS, "s"))
    if recording.fs < SLOWEST_HZ:
        words = f"only {recording.fs:g} samples a second, too few for the QRS complexes"
        found.append(Finding("slow", "abstain", words, (), recording.fs, SLOWEST_HZ, "Hz"))
    return found


def _gaps(missing: NDArray[np.bool_]) -> list[Finding]:
    gaps = float(missing.mean()) if missing.size else 1.0
    if gaps == 0:
        return []
    leads = tuple(name for name, row in zip(LEADS, missing, strict=True) if row.any())
    severity: Severity = "abstain" if gaps > MOST_MISSING else "warn"
    return [Finding("missing", severity, f"{gaps:.1%} of the samples are missing", leads, 100 * gaps, 0.0, "%")]


def _flat(filled: NDArray[np.float64], fs: float, dead: tuple[str, ...]) -> list[Finding]:
    """Find leads that are flat from begin to end, and those that lie exactly still for a while."""
    found = []
    if dead:
        severity: Severity = "abstain" if len(dead) > MOST_FLAT else "warn"
        found.append(Finding("flat", severity, f"flat or missing: {', '.join(dead)}", dead, len(dead), 0, "leads"))
    block = max(round(FLAT_SECONDS * fs / 2), 1)  # one such block lies wholly inside whatever is twice as long
    blocks = filled[:, : filled.shape[1] // block * block].reshape(len(LEADS), -1, block)
    suspect = (np.ptp(blocks, axis=-1) == 0).any(axis=1) if blocks.size else np.zeros(len(LEADS), dtype=bool)
    still = {
        name: _longest_run(np.diff(row) == 0) / fs
        for name, row, suspected in zip(LEADS, filled, suspect, strict=True)
        if suspected and name not in dead
    }
    leads = tuple(name for name, seconds in still.items() if seconds >= FLAT_SECONDS)
    if leads:
        longest = max(still.values())
        words = f"without any change for up to {longest:.1f} s: {', '.join(leads)}"
        found.append(Finding("still", "warn", words, leads, longest, FLAT_SECONDS, "s"))
    return found


def _runs(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the length of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return edges[1::2] - edges[::2]


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of True."""
    return int(_runs(flags).max(initial=0))


def _look(filled: NDArray[np.float64], fs: float, dead: tuple[str, ...]) -> list[Finding]:
    """Find whatever needs the signal itself."""
    spikes = find_spikes(filled, fs)
    bands = split_bands(remove_spikes(filled, fs) if len(spikes) else filled, fs)
    found = [*_clipped(filled, fs, dead), *_heights(bands.beats, dead)]
    found += [*_mains(filled, fs, dead), *_noise(bands, fs, dead), *_drift(bands, dead)]
    moved = np.ptp(bands.drift, axis=1) > 0.5 * JUMP_MV  # the others can't have jumped; most recordings have none
    found += _jumps(filled, fs, [name for name, flag in zip(LEADS, moved, strict=True) if flag and name not in dead])
    paced = len(spikes) > SPIKES_PER_SECOND * filled.shape[1] / fs
    if paced:
        limit = SPIKES_PER_SECOND * filled.shape[1] / fs
        found.append(Finding("spikes", "warn", f"{len(spikes)} spikes as of a pacemaker", (), len(spikes), limit))
    found += [*_identities(bands.beats, dead), *_twins(filled, dead)]
    alone = any(item.severity == "abstain" for item in found) or len(dead) > MOST_FLAT
    if filled.shape[1] >= 3 * fs and not alone:  # nothing else explains it already
        found += _heart(bands.beats, dead, placed=not paced and fs >= PLACED_HZ)
    return found


def _clipped(filled: NDArray[np.float64], fs: float, dead: tuple[str, ...]) -> list[Finding]:
    """Find leads that come to rest at one and the same highest or lowest value several times, or for long."""
    limit = max(CLIPPED_SECONDS * fs, 3)
    clipped: dict[str, int] = {}
    for name, row in zip(LEADS, filled, strict=True):
        for extreme in (row.min(), row.max()):
            at = row == extreme
            if name in dead or at.sum() <= limit:
                continue
            runs = _runs(at[1:-1] & ~_at_the_ends(at)[1:-1])  # a held first or last value is no clipping
            long = runs[runs > limit]
            if len(long) >= CLIPPED_TIMES or long.sum() > LONG_CLIPPED_SECONDS * fs:
                clipped[name] = max(clipped.get(name, 0), int(long.max()))
    if not clipped:
        return []
    leads, longest = tuple(clipped), max(clipped.values()) / fs
    words = f"clipped at the amplifier's limit, for up to {longest:.2f} s: {', '.join(leads)}"
    return [Finding("clipped", "warn", words, leads, longest, limit / fs, "s")]


def _at_the_ends(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the flags belong to a run of True that begins at the start or ends at the end."""
    return np.asarray(np.logical_and.accumulate(flags) | np.logical_and.accumulate(flags[::-1])[::-1])


def _heights(beats: NDArray[np.float64], dead: tuple[str, ...]) -> list[Finding]:
    spans = np.ptp(np.percentile(beats, (0.5, 99.5), axis=1), axis=0)
    highest = float(spans.max())
    leads = tuple(name for name, span in zip(LEADS, spans, strict=True) if span > HUGE_MV)
    if leads:
        words = f"up to {highest:.0f} mV from lowest to highest: {', '.join(leads)}; check electrode, gain and unit"
        severity: Severity = "abstain" if len(leads) > MOST_HUGE else "warn"
        return [Finding("huge", severity, words, leads, highest, HUGE_MV, "mV")]
    if highest < TINY_MV and len(dead) < len(LEADS):
        words = f"no lead reaches {TINY_MV:g} mV: check gain and unit"
        return [Finding("tiny", "abstain", words, (), highest, TINY_MV, "mV")]
    return []


def _mains(filled: NDArray[np.float64], fs: float, dead: tuple[str, ...]) -> list[Finding]:
    """Find the mains' hum: a line at 50 or 60 Hz that stands far above the frequencies beside it."""
    if fs <= 125 or filled.shape[1] < 2 * fs:
        return []
    from scipy import fft

    window = np.hanning(filled.shape[1]).astype(np.float32)
    level = (filled - filled.mean(axis=1, keepdims=True)).astype(np.float32)
    f = fft.rfftfreq(filled.shape[1], 1 / fs)
    near = (f > 44) & (f < 66)
    size = 2 * np.abs(fft.rfft(level * window, axis=1)[:, near]) / window.sum()  # the amplitude of a sine
    f = f[near]
    found = []
    for mains in (50, 60):
        line = size[:, np.abs(f - mains) <= 0.7].max(axis=1)
        beside = size[:, (np.abs(f - mains) > 1.5) & (np.abs(f - mains) < 5)].max(axis=1)
        humming = (line > HUM_MV) & (line > 2 * beside)  # tall, fast, even beats have a line at every multiple
        leads = tuple(name for name, hums in zip(LEADS, humming, strict=True) if hums and name not in dead)
        if leads:
            largest = float(line[humming].max())
            words = f"mains hum of {mains} Hz, up to {largest:.2f} mV: {', '.join(leads)}"
            found.append(Finding("mains", "warn", words, leads, largest, HUM_MV, "mV"))
    return found


def _noise(bands: Bands, fs: float, dead: tuple[str, ...]) -> list[Finding]:
    """Find noise between the beats: in each second, in the quieter quarter of its tenths, so that QRS don't count."""
    step, tenths = max(round(fs / 10), 1), 10
    if bands.noise is None or bands.noise.shape[1] < step * tenths:
        return []
    count = bands.noise.shape[1] // (step * tenths)
    pieces = bands.noise[:, : count * tenths * step].reshape(len(LEADS), count, tenths, step)
    seconds = np.percentile(np.sqrt((pieces**2).mean(axis=-1)), 25, axis=-1)  # (lead, second)
    usual, worst = np.median(seconds, axis=1), seconds.max(axis=1)
    noisy = usual > NOISE_MV
    found = []
    for kind, values, flags, limit, words in (
        ("muscle", usual, noisy, NOISE_MV, "noise above 40 Hz as of muscles"),
        ("burst", worst, (worst > BURST_MV) & ~noisy, BURST_MV, "a burst of noise above 40 Hz"),
    ):
        leads = tuple(name for name, flag in zip(LEADS, flags, strict=True) if flag and name not in dead)
        if leads:
            largest = float(max(values[LEADS.index(name)] for name in leads))
            said = f"{words}, up to {largest:.2f} mV: {', '.join(leads)}"
            found.append(Finding(kind, "warn", said, leads, largest, limit, "mV"))
    return found


def _drift(bands: Bands, dead: tuple[str, ...]) -> list[Finding]:
    """Find a wandering baseline."""
    if bands.drift.shape[1] <= 4 * DRIFT_FS:
        return []
    ranges = np.ptp(bands.drift, axis=1)
    leads = tuple(name for name, span in zip(LEADS, ranges, strict=True) if span > WANDER_MV and name not in dead)
    if not leads:
        return []
    words = f"the baseline wanders by up to {ranges.max():.1f} mV: {', '.join(leads)}"
    return [Finding("wander", "warn", words, leads, float(ranges.max()), WANDER_MV, "mV")]


def _jumps(filled: NDArray[np.float64], fs: float, suspects: list[str]) -> list[Finding]:
    """Find levels that jump: an electrode moved. Most of the change must come at once, or it is wander."""
    step = max(round(fs / 20), 1)
    count = filled.shape[1] // step
    second = round(fs / step)
    if not suspects or count < 2 * second + 2 or second < 6:
        return []
    rows = [LEADS.index(name) for name in suspects]
    level = filled[rows, : count * step].reshape(len(rows), count, step).mean(axis=-1)

    def change(width: int) -> NDArray[np.float64]:
        """Return the median after each moment less the one before it."""
        medians = np.median(np.lib.stride_tricks.sliding_window_view(level, width, axis=1), axis=-1)
        later, sooner = medians[:, second : count - second], medians[:, second - width : count - second - width]
        return np.asarray(later - sooner)

    slow, quick = change(second), change(max(round(0.3 * second), 1))
    abrupt = np.where(np.sign(slow) == np.sign(quick), np.minimum(np.abs(slow), np.abs(quick) / 0.7), 0.0)
    heights = abrupt.max(axis=1)
    leads = tuple(name for name, height in zip(suspects, heights, strict=True) if height > JUMP_MV)
    if not leads:
        return []
    words = f"the level jumps by up to {heights.max():.1f} mV, as where an electrode moves: {', '.join(leads)}"
    return [Finding("jump", "warn", words, leads, float(heights.max()), JUMP_MV, "mV")]


def _identities(beats: NDArray[np.float64], dead: tuple[str, ...]) -> list[Finding]:
    """Find limb leads that contradict each other: scaled differently, or swapped, mislabeled, damaged."""
    parts = {"Einthoven": ("II", "I", "III"), "Goldberger": ("aVR", "aVL", "aVF")}
    meaning = {"Einthoven": "II is not I + III", "Goldberger": "aVR + aVL + aVF is not 0"}
    found = []
    for law, off in identity_residuals(beats).items():
        if off <= IDENTITY_FRACTION or set(parts[law]) & set(dead):
            continue
        rows = [beats[LEADS.index(name)] for name in parts[law]]
        scaled = _scaled_apart(rows, sign=1.0 if law == "Einthoven" else -1.0)
        doubt = ", but would be with other gains: doubt heights and axis" if scaled else ""
        words = f"{meaning[law]} (off by {off:.0%}){doubt or ': a limb lead is damaged or mislabeled'}"
        severity: Severity = "warn" if scaled else "abstain"
        found.append(Finding("identity", severity, words, parts[law], 100 * off, 100 * IDENTITY_FRACTION, "%"))
    return found


def _scaled_apart(rows: list[NDArray[np.float64]], sign: float) -> bool:
    """Return whether the first lead is the sum of the other two (times `sign`) once each may have its own gain."""
    others = np.stack(rows[1:], axis=1)
    gains, *_ = np.linalg.lstsq(others, rows[0], rcond=None)
    rest = rows[0] - others @ gains
    small = float(np.sqrt(np.mean(rest**2))) <= 0.5 * IDENTITY_FRACTION * float(np.sqrt(np.mean(rows[0] ** 2)))
    return small and bool((sign * gains > 0.1).all())


def _twins(filled: NDArray[np.float64], dead: tuple[str, ...]) -> list[Finding]:
    """Find two chest leads that carry one and the same signal."""
    alive = [name for name in LEADS[6:] if name not in dead]
    twins = []
    for one, other in itertools.pairwise(alive):
        a, b = filled[LEADS.index(one)], filled[LEADS.index(other)]
        if float(np.std(a - b)) < TWIN_FRACTION * float(np.std(a)):
            twins.append((one, other))
    if not twins:
        return []
    words = f"the same signal twice: {', '.join(' and '.join(pair) for pair in twins)}"
    leads = tuple(dict.fromkeys(name for pair in twins for name in pair))
    return [Finding("twins", "warn", words, leads, len(twins), 0, "pairs")]


def _heart(beats: NDArray[np.float64], dead: tuple[str, ...], *, placed: bool) -> list[Finding]:
    """Find what doesn't look like a heart, or (if `placed`) like one seen from the wrong places."""
    peaks = find_r_peaks(beats, BEAT_FS)
    beat = average_beat(beats, peaks)
    if beat is None:
        seconds = beats.shape[1] / BEAT_FS
        if len(peaks) > 1 or (len(peaks) == 1 and seconds < SHORT_SECONDS):
            return []  # too short to compare beats
        words = "no heartbeats stand out: not an ECG, or no heart that beats (ventricular fibrillation, standstill)"
        return [Finding("not_an_ecg", "abstain", words, (), len(peaks), 2, "beats")]
    share = _one_source(beats, dead)
    if beat.likeness < LEAST_LIKENESS:
        words = f"what looks like heartbeats isn't alike (likeness {beat.likeness:.2f}): not an ECG, or lost in noise"
        return [Finding("not_an_ecg", "abstain", words, (), beat.likeness, LEAST_LIKENESS)]
    if share > MOST_OF_ONE_SOURCE:
        words = f"all leads show the same signal ({share:.1%} of it): not twelve leads of a heart"
        return [Finding("not_an_ecg", "abstain", words, (), 100 * share, 100 * MOST_OF_ONE_SOURCE, "%")]
    step = _step(beat)
    if step > MOST_STEP:
        words = f"what looks like QRS complexes are steps ({step:.0%} of their height remain after them): not an ECG"
        return [Finding("not_an_ecg", "abstain", words, (), 100 * step, 100 * MOST_STEP, "%")]
    return _reversal(beat) if placed and set(dead) <= set(FLAT_SWAPS) else []


def _step(beat: AverageBeat) -> float:
    """Return which part of a QRS complex's height is still there after it, in all leads together."""
    level = [np.median(beat.signal[:, BEFORE + k : BEFORE + k + 4], axis=1) for k in (-11, 7)]
    heights = np.ptp(beat.signal[:, BEFORE - 11 : BEFORE + 11], axis=1)
    return float(np.linalg.norm(level[1] - level[0])) / max(float(np.linalg.norm(heights)), 1e-9)


def _one_source(beats: NDArray[np.float64], dead: tuple[str, ...]) -> float:
    """Return the share of the live independent leads' variance (each counted alike) that one signal explains."""
    rows = [k for k in (0, 1, *range(6, 12)) if LEADS[k] not in dead]
    if len(rows) < 3:
        return 0.0
    likeness = np.corrcoef(beats[rows])
    return float(np.linalg.eigvalsh(likeness)[-1] / len(rows))


def _reversal(beat: AverageBeat) -> list[Finding]:
    found = find_reversal(beat)
    if found is None:
        return []
    swap, score, limit = found.swap, found.score, found.limit
    if swap in FLAT_SWAPS.values():
        lead = next(lead for lead, name in FLAT_SWAPS.items() if name == swap)
        words = f"lead {lead} is all but flat: the electrodes {_names(swap)} may be in each other's place"
        return [Finding("reversal", "warn", words, (lead,), score, limit)]
    leads: Sequence[str] = swap.split("/") if swap in CHEST_SWAPS else LEADS[:6]
    what = f"{' and '.join(leads)}" if swap in CHEST_SWAPS else "the limb leads and the axis"
    words = f"the electrodes {_names(swap)} may be in each other's place: doubt {what}, or the heart is unusual"
    return [Finding("reversal", "warn", words, tuple(leads), score, limit)]


def _names(swap: str) -> str:
    """Return an exchange in words: "of the right and left arm (RA/LA)"."""
    place = {"RA": "right arm", "LA": "left arm", "LL": "left leg", "RL": "right leg"}
    one, other = swap.split("/")
    return f"of {place.get(one, one)} and {place.get(other, other)}{f' ({swap})' if one in place else ''}"
