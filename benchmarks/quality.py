"""Measure the judge of `ecgchat_lib.ecg.quality`: how often it speaks up on recordings as they are, and on spoiled.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/quality.py [--out data/results/quality.json]

Unmodified records may have real faults, so what is found on them is an upper bound of the false alarms. Reversals are
made by lead algebra from records that the model of `reversal.py` wasn't fitted on. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from fit_reversal import fitted_on
from real_records import Real, others, ptbxl, ptbxl_processed, real_folder

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.ecg.filters import fill_missing
from ecgchat_lib.ecg.quality import Quality, judge
from ecgchat_lib.ecg.recording import Recording
from ecgchat_lib.ecg.reversal import CHEST_SWAPS, LIMB_SWAPS, derive_limb_leads, swap_electrodes
from ecgchat_lib.paths import data_folder, project_root

SEED = 7
NO_SINUS = {"AFIB", "AFLT", "PACE", "SVTAC", "PSVT"}  # PTB-XL's statements of rhythms without a sinus P wave
COLUMNS = {  # PTB-XL's remarks on the signal, by people, of unknown thoroughness: kind, column
    "wander": "baseline_drift",
    "muscle": "static_noise",
    "burst": "burst_noise",
    "jump": "electrodes_problems",
    "spikes": "pacemaker",
}
Spoil = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def share(hits: Sequence[bool] | np.ndarray) -> dict[str, float | int | list[float]]:
    """Return n, how many, their share, and Wilson's 95 % interval."""
    flags = np.asarray(hits, dtype=bool)
    n, k, z = len(flags), int(flags.sum()), 1.96
    if n == 0:
        return {"n": 0}
    p = k / n
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = [round(abs(float((middle + sign * half) / (1 + z**2 / n))), 3) for sign in (-1, 1)]
    return {"n": n, "found": k, "share": round(p, 3), "interval": interval}


def derived(x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Add `(8, time)` of noise to I, II and V1-V6, and derive the others, as a cardiograph does."""
    whole = x.copy()
    whole[6:] += noise[2:]
    whole[:6] = derive_limb_leads(x[0] + noise[0], x[1] + noise[1])
    return whole


def white(mv: float) -> Spoil:
    """Noise of all frequencies, of this standard deviation."""
    return lambda x, fs, rng: derived(x, rng.normal(0, mv, (8, x.shape[1])))


def muscle(mv: float) -> Spoil:
    """Noise of 20 Hz and more that swells and fades."""

    def spoil(x: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        from scipy.signal import butter, sosfiltfilt

        noise = sosfiltfilt(butter(2, 20, "highpass", fs=fs, output="sos"), rng.normal(size=(8, x.shape[1])), axis=1)
        swell = 1 + 0.5 * np.sin(2 * np.pi * 0.3 * np.arange(x.shape[1]) / fs)
        return derived(x, mv * swell * noise / noise.std())

    return spoil


def mains(mv: float, hz: float) -> Spoil:
    """A sine of the mains, of this amplitude; each lead of its own size."""

    def spoil(x: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        phase = 2 * np.pi * (hz + rng.uniform(-0.1, 0.1)) * np.arange(x.shape[1]) / fs
        return derived(x, mv * rng.uniform(0.3, 1, (8, 1)) * np.sin(phase))

    return spoil


def wander(mv: float) -> Spoil:
    """Breathing: a sine of 0.15 to 0.35 Hz, of this range from lowest to highest."""

    def spoil(x: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        sine = np.sin(2 * np.pi * rng.uniform(0.15, 0.35) * np.arange(x.shape[1]) / fs + rng.uniform(0, 6))
        return derived(x, 0.5 * mv * rng.uniform(0.3, 1, (8, 1)) * sine / 0.8)

    return spoil


def jump(mv: float) -> Spoil:
    """One chest electrode moves: from one sample to the next, another level, which decays in some seconds."""

    def spoil(x: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        at, lead = round(rng.uniform(0.25, 0.7) * x.shape[1]), int(rng.integers(2, 8))
        noise = np.zeros((8, x.shape[1]))
        noise[lead, at:] = mv * np.exp(-np.arange(x.shape[1] - at) / (5 * fs))
        return derived(x, noise)

    return spoil


def flat(x: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
    """One chest lead falls off."""
    x = x.copy()
    x[int(rng.integers(6, 12))] = rng.normal(0, 0.001, x.shape[1])
    return x


def clipped(x: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
    """A chest lead is cut off at half of its height and depth."""
    x = x.copy()
    row = int(rng.integers(6, 12))
    low, high = np.percentile(x[row], (0.2, 99.8))
    x[row] = x[row].clip(low / 2, high / 2)
    return x


SPOILED: dict[str, tuple[Spoil, str]] = {
    **{f"white noise, {mv} mV": (white(mv), "muscle") for mv in (0.02, 0.05, 0.1)},
    **{f"muscle noise, {mv} mV": (muscle(mv), "muscle") for mv in (0.02, 0.05, 0.1)},
    **{f"mains of 50 Hz, {mv} mV": (mains(mv, 50), "mains 50") for mv in (0.02, 0.05, 0.1)},
    **{f"mains of 60 Hz, {mv} mV": (mains(mv, 60), "mains 60") for mv in (0.02, 0.05, 0.1)},
    **{f"wander of {mv} mV": (wander(mv), "wander") for mv in (1.0, 2.0, 3.0)},
    **{f"a jump of {mv} mV": (jump(mv), "jump") for mv in (0.5, 1.0, 2.0)},
    "one chest lead flat": (flat, "flat"),
    "one chest lead clipped": (clipped, "clipped"),
    "two leads renamed": (lambda x, fs, rng: x[[1, 0, *range(2, 12)]], "identity"),
    "aVR upside down": (lambda x, fs, rng: np.concatenate([x[:3], -x[3:4], x[4:]]), "identity"),
}


def source(kind: str, rng: np.random.Generator, fs: float, n: int) -> np.ndarray:
    """Return `(time,)` of something that is no ECG, of unit size."""
    t = np.arange(n) / fs

    def colored(power: float) -> np.ndarray:
        f = np.fft.rfftfreq(n, 1 / fs)
        f[0] = f[1]
        x = np.fft.irfft(np.fft.rfft(rng.normal(size=n)) / f ** (power / 2), n)
        return np.asarray((x - x.mean()) / x.std())

    def cycle(low: float, high: float, unsteady: float = 0.0) -> np.ndarray:
        return (np.cumsum(rng.uniform(low, high) * (1 + unsteady * colored(2)) / fs) + rng.uniform()) % 1

    def pulse(phase: np.ndarray) -> np.ndarray:
        return np.exp(-(((phase - 0.25) / 0.12) ** 2)) + 0.4 * np.exp(-(((phase - 0.6) / 0.12) ** 2))

    makers: dict[str, Callable[[], np.ndarray]] = {
        "white noise": lambda: rng.normal(size=n),
        "pink noise": lambda: colored(1),
        "random walk": lambda: colored(2),
        "sine": lambda: np.sin(2 * np.pi * cycle(0.5, 20)),
        "chirp": lambda: np.sin(2 * np.pi * np.cumsum(np.linspace(0.5, rng.uniform(5, 40), n)) / fs),
        "square wave": lambda: np.where(cycle(0.5, 4) < rng.uniform(0.1, 0.9), 1.0, -1.0),
        "sawtooth": lambda: 2 * cycle(0.5, 4) - 1,
        "ramp": lambda: 2 * t / t[-1] - 1,
        "steps": lambda: np.repeat(rng.normal(size=n // 250 + 1), 250)[:n],
        "speech": lambda: (
            np.clip(np.sin(2 * np.pi * cycle(2, 5, 0.2)), 0, 1) ** 2
            * (np.sin(2 * np.pi * cycle(90, 180, 0.1)) + 0.5 * rng.normal(size=n))
        ),
        "EEG": lambda: colored(1) + rng.uniform(0.5, 1.5) * np.sin(2 * np.pi * cycle(9, 11, 0.03)),
        "pulse wave": lambda: pulse(cycle(0.8, 2, 0.03)),
        "breathing": lambda: np.sin(2 * np.pi * cycle(0.15, 0.4, 0.1)),
        "constant": lambda: np.ones(n),
    }
    return makers[kind]()


NO_ECG = (
    *(
        "white noise",
        "pink noise",
        "random walk",
        "sine",
        "chirp",
        "square wave",
        "sawtooth",
        "ramp",
        "steps",
        "speech",
    ),
    *("EEG", "pulse wave", "breathing", "constant"),
)


def no_ecg(kind: str, how: str, rng: np.random.Generator, fs: float = 500.0, n: int = 5000) -> Recording:
    """Return twelve leads that are no ECG, yet obey the identities: of one or three sources, or each its own."""
    sources = {"one": 1, "three": 3, "own": 8}[how]
    s = np.stack([source(kind, rng, fs, n) for _ in range(sources)])
    mixed = s if how == "own" else rng.normal(size=(8, sources)) @ s
    mixed = rng.uniform(0.1, 1.0) * mixed + rng.normal(0, 0.005, mixed.shape)
    whole = np.concatenate([derive_limb_leads(*mixed[:2]), mixed[2:]])
    return Recording(kind, whole.astype(np.float32), fs)


def spoiled(real: Real, change: Spoil, rng: np.random.Generator) -> Recording:
    """Return a copy with one fault more."""
    signal = fill_missing(real.recording.signal)[0]
    return replace(real.recording, signal=change(signal, real.recording.fs, rng).astype(np.float32))


def swapped(real: Real, swap: str) -> Recording:
    """Return the record as it would be with two electrodes exchanged; the legs' potentials differ by 0.01 mV."""
    signal = swap_electrodes(fill_missing(real.recording.signal)[0], swap)
    if swap.endswith("RL"):
        rng = np.random.default_rng(SEED)
        between = np.convolve(rng.normal(size=signal.shape[1] + 9), np.ones(10) / 10, "valid")
        between *= 0.01 / between.std()
        i, ii = signal[0], signal[1] + between
        signal[:6] = derive_limb_leads(i, ii)
    return replace(real.recording, signal=signal.astype(np.float32))


def has(quality: Quality, what: str) -> bool:
    """Return whether a finding of this kind (and, for the mains, frequency) is among the findings."""
    kind, _, hz = what.partition(" ")
    return any(item.kind == kind and f"{hz} Hz" in item.words if hz else item.kind == kind for item in quality.findings)


def called(quality: Quality) -> str | None:
    """Return the exchange that is called, if one is."""
    for item in quality.findings:
        if item.kind == "reversal":
            return next(swap for swap in ALL if swap in item.words or swap.replace("/", " and ") in item.words)
    return None


ALL = (*LIMB_SWAPS, "RA/RL", "LA/RL", *CHEST_SWAPS)


def as_they_are(groups: dict[str, list[Real]]) -> dict[str, object]:
    """Return, for each dataset, how many records have each finding, and how long judging takes."""
    result: dict[str, object] = {}
    for name, records in groups.items():
        verdicts, seconds = [], []
        for real in records:
            begun = time.perf_counter()
            verdicts.append(judge(real.recording))
            seconds.append(time.perf_counter() - begun)
        kinds = sorted({item.kind for verdict in verdicts for item in verdict.findings})
        result[name] = {
            "no finding": share([not verdict.findings for verdict in verdicts]),
            "abstain": share([not verdict.usable for verdict in verdicts]),
            **{kind: share([has(verdict, kind) for verdict in verdicts]) for kind in kinds},
            "milliseconds": {
                q: round(1000 * float(np.quantile(seconds, v)), 1) for q, v in (("median", 0.5), ("p95", 0.95))
            },
        }
    return result


def remarks(records: list[Real], root: Path) -> dict[str, object]:
    """Return how the findings agree with PTB-XL's remarks."""
    table = pd.read_csv(root / "ptbxl" / "ptbxl_database.csv.gz").set_index("ecg_id")
    verdicts = [judge(real.recording) for real in records]
    result = {}
    for kind, column in COLUMNS.items():
        marked = np.array([isinstance(table.at[real.number, column], str) for real in records])
        found = np.array([has(verdict, kind) for verdict in verdicts])
        result[kind] = {
            "column": column,
            "remarked and found": int((marked & found).sum()),
            "remarked only": int((marked & ~found).sum()),
            "found only": int((~marked & found).sum()),
            "neither": int((~marked & ~found).sum()),
        }
    return result


def faults(records: list[Real]) -> dict[str, object]:
    """Return how often each fault is found once it is put into a record that doesn't have it."""
    rng = np.random.default_rng(SEED)
    before = [judge(real.recording) for real in records]
    result = {}
    for name, (change, kind) in SPOILED.items():
        clean = [real for real, verdict in zip(records, before, strict=True) if not has(verdict, kind)]
        result[name] = share([has(judge(spoiled(real, change, rng)), kind) for real in clean])
    return result


def nothing_of_a_heart() -> dict[str, object]:
    """Return how often signals that are no ECG are refused."""
    rng = np.random.default_rng(SEED)
    result: dict[str, object] = {}
    every = []
    for kind in NO_ECG:
        flags = [not judge(no_ecg(kind, how, rng)).usable for how in ("one", "three", "own") for _ in range(20)]
        every += flags
        result[kind] = share(flags)
    return {"all": share(every), **result}


def reversals(groups: dict[str, list[Real]]) -> dict[str, object]:
    """Return how often each exchange is noticed and rightly named, and how often one is called where none was made."""
    result: dict[str, object] = {}
    for name, records in groups.items():
        plain = [called(judge(real.recording)) for real in records]
        part: dict[str, object] = {"as they are": {"any": share([swap is not None for swap in plain])}}
        for swap in ALL:
            found = [called(judge(swapped(real, swap))) for real in records]
            part[swap] = {
                "noticed": share([other is not None for other in found]),
                "rightly named": share([other == swap for other in found]),
                "called as they are": share([other == swap for other in plain]),
            }
        result[name] = part
    return result


def sinus(records: list[Real], root: Path) -> list[Real]:
    """Return PTB-XL's records of a rhythm with sinus P waves, by their statements."""
    codes = pd.read_csv(root / "ptbxl" / "ptbxl_database.csv.gz").set_index("ecg_id").scp_codes
    return [real for real in records if not NO_SINUS & set(ast.literal_eval(codes[real.number]))]


def main() -> int:
    """Run everything; write and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "quality.json")
    out = parser.parse_args().out
    root = real_folder()
    raw, rest = ptbxl(root), others(root)
    groups = {"PTB-XL": raw} | {
        name: [real for real in rest if real.source == name] for name in ("LUDB", "Challenge", "CODE-15%")
    }
    unseen = [real for real in (*raw, *ptbxl_processed(root)) if not fitted_on(real)]
    unseen_groups = {
        "PTB-XL fold 9, sinus rhythm": sinus(unseen, root),
        "LUDB": groups["LUDB"],
        "Challenge, half not fitted on": [real for real in groups["Challenge"] if not fitted_on(real)],
        "CODE-15%": groups["CODE-15%"],
    }
    content = {
        "what": "findings of ecgchat_lib.ecg.quality.judge; interval: Wilson, 95 %",
        "data": "PTB-XL 1.0.1 (479 raw records of folds 1-9; for reversals also scaled ones of fold 9), "
        "LUDB 1-50, 180 records of the PhysioNet/CinC Challenge 2020/21 collection, 30 of CODE-15%",
        "as they are": as_they_are(groups),
        "against PTB-XL's remarks": remarks(raw, root),
        "spoiled (PTB-XL, raw)": faults(raw),
        "no ECG": nothing_of_a_heart(),
        "reversals, by lead algebra": reversals(unseen_groups),
        "seed": SEED,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "note": "timings on a shared machine, one thread",
            "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "scipy", "scikit-learn")},
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out)
    print(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
