"""Break records at random and read them: each must be read or refused in one line, whatever was done to it.

    python benchmarks/fuzz_reading.py [--n 10000] [--seed 0] [--out data/results/fuzz_reading.json]

Sound records of many kinds (formats 8 to 516, MATLAB 4 and 5, several samples per frame, several segments) are broken
in one to four places: bytes, numbers, fields and lines of headers, names of files, links, lengths and contents of
signal files. Counted as a failure: any exception but the library's own, more than ten seconds, running into a limit of
768 MB of memory more than at the start, a result that isn't twelve finite leads, and opening a file outside the
record's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.io
import wfdb

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import EcgChatError

TIME, SECONDS, MEMORY = 240, 10, 768_000_000
NUMBERS = ["0", "1", "-1", "2", "12", "24", "13", "1000", "65536", "2147483648", "9999999999", "1e9", "1e-9", "nan"]
NUMBERS += ["inf", "-0", "0x10", "1_0", "٣", "1e400", "3.5", "-32768", "+5", "", "5000000", "16+24", "1-2"]
NUMBERS += ["9" * 40]
FORMATS = ["8", "16", "24", "32", "61", "80", "160", "212", "310", "311", "508", "516", "524", "0", "17", "16x2"]
FORMATS += ["16x4", "16:3", "16+24", "212x4", "16x10000", "80x3:7+1", "16x0", "16:999999", "16+99999999999"]
FILES = ["../outside/secret.dat", "{outside}/secret.dat", "..\\outside\\secret.dat", "~", "-", ".", ".."]
FILES += ["/etc/passwd", "link.dat", "http://example.org/x.dat", "C:x.dat", "r.hea", "part0.hea", "folder"]
FILES += ["loop.dat", "pipe.dat", "file:///etc/passwd", "memory://x.dat", "s3://bucket/x.dat"]
FILES += ["x" * 300]
SEGMENTS = ["r", "r.hea", "~", "part0", "part1", "layout", "../outside/secret", "{outside}/secret", "link", "other"]
SEGMENTS += ["."]


class Slow(BaseException):
    """A case took longer than allowed."""


# --- sound records -----------------------------------------------------------------------------------------------


def _counts(rng: np.random.Generator, time: int = TIME, highest: int = 100) -> np.ndarray:
    return rng.integers(-highest, highest, size=(time, 12))


def _header(folder: Path, name: str, file: str, format_: str, samples: int | str = TIME, fs: float = 500) -> None:
    lines = [f"{name} 12 {fs:g} {samples}", *(f"{file} {format_} 1000(0)/mV 16 0 0 0 0 {lead}" for lead in LEADS)]
    (folder / f"{name}.hea").write_text("\n".join([*lines, "# Age: 60", "#Sex: F"]) + "\n")


def written_by_wfdb(format_: str) -> Callable[[Path, np.random.Generator], None]:
    """Return a maker of a record in one of the formats that wfdb writes."""

    def make(folder: Path, rng: np.random.Generator) -> None:
        fields = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": [format_] * 12}
        wfdb.wrsamp(
            "r", d_signal=_counts(rng), adc_gain=[100.0] * 12, baseline=[0] * 12, write_dir=str(folder), **fields
        )

    return make


def by_hand(format_: str, dtype: str) -> Callable[[Path, np.random.Generator], None]:
    """Return a maker of a record in a format that only needs an array's bytes."""

    def make(folder: Path, rng: np.random.Generator) -> None:
        (folder / "r.dat").write_bytes(np.abs(_counts(rng)).astype(dtype).tobytes() + bytes(64))
        _header(folder, "r", "r.dat", format_)

    return make


def matlab_4(folder: Path, rng: np.random.Generator) -> None:
    """Write a record as the PhysioNet/CinC Challenge does."""
    scipy.io.savemat(folder / "r.mat", {"val": _counts(rng).T.astype(np.int16)}, format="4")
    _header(folder, "r", "r.mat", "16+24")


def matlab_5(dtype: str, compressed: bool) -> Callable[[Path, np.random.Generator], None]:
    """Return a maker of a record with a MATLAB 5 file that holds something else too."""

    def make(folder: Path, rng: np.random.Generator) -> None:
        content = {"other": np.ones(3), "val": _counts(rng).T.astype(dtype)}
        scipy.io.savemat(folder / "r.mat", content, do_compression=compressed)
        _header(folder, "r", "r.mat", "16+24")

    return make


def several_rates(folder: Path, rng: np.random.Generator) -> None:
    """Write a record whose leads have one, two or four samples per frame."""
    per_frame = [4] * 6 + [2] * 3 + [1] * 3
    (folder / "r.dat").write_bytes(rng.integers(-99, 99, (60, sum(per_frame))).astype("<i2").tobytes())
    lines = [f"r.dat 16x{k} 100/mV 16 0 0 0 0 {lead}" for k, lead in zip(per_frame, LEADS, strict=True)]
    (folder / "r.hea").write_text("\n".join(["r 12 125 60", *lines]) + "\n")


def fixed_segments(folder: Path, rng: np.random.Generator) -> None:
    """Write a record of two segments with the same leads."""
    for k in (0, 1):
        (folder / f"part{k}.dat").write_bytes(_counts(rng, 120).astype("<i2").tobytes())
        _header(folder, f"part{k}", f"part{k}.dat", "16", 120)
    (folder / "r.hea").write_text("r/2 12 500 240\npart0 120\npart1 120\n# Age: 5\n")


def variable_segments(folder: Path, rng: np.random.Generator) -> None:
    """Write a record with a layout, a gap, and a segment without lead V6."""
    lines = "\n".join(f"~ 0 100/mV 16 0 0 0 0 {lead}" for lead in LEADS)
    (folder / "layout.hea").write_text(f"layout 12 500 0\n{lines}\n")
    (folder / "part0.dat").write_bytes(_counts(rng, 120).astype("<i2").tobytes())
    _header(folder, "part0", "part0.dat", "16", 120)
    (folder / "part1.dat").write_bytes(_counts(rng, 120)[:, :11].astype("<i2").tobytes())
    lines = "\n".join(f"part1.dat 16 100/mV 16 0 0 0 0 {lead}" for lead in LEADS[:11])
    (folder / "part1.hea").write_text(f"part1 11 500 120\n{lines}\n")
    (folder / "r.hea").write_text("r/4 12 500 300\nlayout 0\npart0 120\n~ 60\npart1 120\n")


def two_files(folder: Path, rng: np.random.Generator) -> None:
    """Write a record with six leads in each of two files, in two formats."""
    counts = _counts(rng)
    (folder / "limb.dat").write_bytes(counts[:, :6].astype("<i2").tobytes())
    (folder / "chest.dat").write_bytes(counts[:, 6:].astype("<i4").tobytes())
    files = ["limb.dat 16"] * 6 + ["chest.dat 32"] * 6
    lines = [f"{file} 1/uV 16 0 0 0 0 {lead}" for file, lead in zip(files, LEADS, strict=True)]
    (folder / "r.hea").write_text("\n".join([f"r 12 500 {TIME}", *lines]) + "\n")


KINDS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    **{f"format {f}": written_by_wfdb(f) for f in ("16", "24", "32", "80", "212", "516")},
    **{f"format {f}": by_hand(f, dtype) for f, dtype in (("8", "i1"), ("61", ">i2"), ("160", "<u2"), ("310", "<u2"))},
    "MATLAB 4": matlab_4,
    "MATLAB 5": matlab_5("int16", compressed=False),
    "MATLAB 5 compressed": matlab_5("float64", compressed=True),
    "several rates": several_rates,
    "fixed segments": fixed_segments,
    "variable segments": variable_segments,
    "two files": two_files,
}


# --- breaking them -----------------------------------------------------------------------------------------------


def break_header(folder: Path, rng: np.random.Generator, outside: Path) -> None:
    """Change one thing in one of the record's headers."""
    headers = sorted(path.name for path in folder.glob("*.hea") if not path.is_symlink())  # nothing outside is changed
    path = folder / str(rng.choice(headers))
    text = path.read_text("latin-1") if path.is_file() else "r 12 500 240\n"
    lines = text.split("\n")
    at = int(rng.integers(len(lines)))
    fields = lines[at].split(" ")
    field = int(rng.integers(len(fields)))
    what = int(rng.integers(11))
    if what == 0:  # bytes
        raw = bytearray(text.encode("latin-1"))
        for _ in range(int(rng.integers(1, 6))):
            place = int(rng.integers(len(raw) + 1))
            raw[place : place + int(rng.integers(3))] = rng.bytes(int(rng.integers(3)))
        path.write_bytes(bytes(raw))
        return
    if what == 1:  # a number
        numbers = list(re.finditer(r"\d+", text))
        if numbers:
            found = numbers[int(rng.integers(len(numbers)))]
            lines = [text[: found.start()] + str(rng.choice(NUMBERS)) + text[found.end() :]]
    elif what == 2:
        fields[field] = str(rng.choice(NUMBERS))
    elif what == 3 and len(fields) > 1:
        fields[1] = str(rng.choice(FORMATS))
    elif what == 4:
        fields[0] = str(rng.choice([*FILES, *SEGMENTS])).format(outside=outside)
    elif what == 5:  # the same in every line
        old, new = fields[field], str(rng.choice([*FORMATS, *FILES, *NUMBERS])).format(outside=outside)
        lines = [" ".join(new if word == old else word for word in line.split(" ")) for line in lines]
        fields = lines[at].split(" ")
    elif what == 6:
        other = int(rng.integers(len(lines)))
        lines[at], lines[other] = lines[other], lines[at]
        fields = lines[at].split(" ")
    elif what == 7:
        lines.insert(at, lines[int(rng.integers(len(lines)))])
        fields = lines[at].split(" ")
    elif what == 8:
        del fields[field]
    elif what == 9:  # a record of segments
        names = [str(rng.choice(SEGMENTS)).format(outside=outside) for _ in range(int(rng.integers(1, 5)))]
        sizes = [str(rng.choice([0, 60, 120, 240, 99999999, 999999999999])) for _ in names]
        lines = [f"r/{len(names)} 12 500 {sum(int(s) for s in sizes) if rng.integers(2) else ''}"]
        lines += [f"{name} {size}" for name, size in zip(names, sizes, strict=True)]
        fields, at = lines[0].split(" "), 0
    else:
        fields.insert(field, str(rng.choice([*NUMBERS, "#", "\t", "x" * 5000, "\0", "\x85", "é", "(", ")/", "~"])))
    if what != 1:
        lines[at] = " ".join(fields)
    path.write_text("\n".join(lines), encoding="utf-8" if rng.integers(2) else "latin-1", errors="replace")


def break_signal_file(folder: Path, rng: np.random.Generator, outside: Path) -> None:
    """Change one of the record's signal files, or put something else in its place."""
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".dat", ".mat") and path.is_file())
    if not files:
        return
    path = folder / str(rng.choice(files))
    raw = bytearray(path.read_bytes())
    what = int(rng.integers(11))
    if what == 0 and raw:
        raw = raw[: int(rng.integers(len(raw)))]
    elif what == 1:
        raw += rng.bytes(int(rng.integers(1, 100)))
    elif what == 2 and raw:  # bytes near its beginning, where lengths stand
        for _ in range(int(rng.integers(1, 8))):
            raw[int(rng.integers(min(len(raw), 300)))] = int(rng.integers(256))
    elif what == 3 and raw:
        for _ in range(int(rng.integers(1, 30))):
            raw[int(rng.integers(len(raw)))] = int(rng.integers(256))
    elif what == 4:
        raw[:] = b"\x00\x80" * (len(raw) // 2)
    elif what == 5:
        raw[:] = bytes(len(raw))
    elif what == 6:
        raw[:] = b"MATLAB 5.0 MAT-file".ljust(126) + b"IM" + rng.bytes(int(rng.integers(400)))
    elif what == 7 and len(raw) > 132:
        raw[128:136] = np.array([14 + rng.integers(2), rng.choice([0, 8, 2**31, 2**32 - 1])], "<u4").tobytes()
    else:
        path.unlink()
        if what == 8:
            path.symlink_to(outside / "secret.dat")
        elif what == 9:
            path.symlink_to(path.name)
        elif rng.integers(2):
            os.mkfifo(path)
        else:
            path.mkdir()
        return
    path.write_bytes(bytes(raw))


def build(folder: Path, sound: dict[str, bytes], rng: np.random.Generator, outside: Path) -> None:
    """Write a sound record into an empty folder, and break it in one to four places."""
    for name, content in sound.items():
        (folder / name).write_bytes(content)
    (folder / "link.dat").symlink_to(outside / "secret.dat")
    (folder / "link.hea").symlink_to(outside / "secret.hea")
    (folder / "loop.dat").symlink_to("loop.dat")
    (folder / "folder").mkdir()
    for _ in range(int(rng.integers(1, 5))):
        breaker = break_header if rng.random() < 0.7 else break_signal_file
        breaker(folder, rng, outside)


# --- reading them ------------------------------------------------------------------------------------------------

_watched: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    """Remember what is opened; an audit hook can't be removed, so it does nothing outside a case."""
    if _watched is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _watched.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(_watch)


@contextmanager
def limited() -> Iterator[None]:
    """Limit the process's memory to somewhat more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _ring(*_: object) -> None:
    raise Slow


def outcome(path: Path, allow_missing: bool) -> str:
    """Read one record; return "read", "refused", or what went wrong."""
    global _watched
    handler = signal.signal(signal.SIGALRM, _ring)
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watched = []
    try:
        recording = read_recording(path, allow_missing=allow_missing)
    except EcgChatError as error:
        line = str(error)
        result = "refused" if "\n" not in line and "MemoryError" not in line else f"a bad refusal: {line[:200]!r}"
    except Slow:
        result = f"more than {SECONDS} s"
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"[:200]
    else:
        sound = recording.signal.shape[0] == 12 and recording.signal.dtype == np.float32
        finite = allow_missing or bool(np.isfinite(recording.signal).all())
        result = "read" if sound and finite else "not twelve finite leads"
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
        opened, _watched = _watched, None
    folder = os.path.realpath(path.parent)
    allowed = (folder, os.path.join(os.path.realpath(tempfile.gettempdir()), "ecgchat-"), sys.prefix, sys.base_prefix)
    strayed = [name for name in opened if not name.startswith(allowed)]
    return f"opened {strayed[0]}" if strayed else result


def _sound(folder: Path, kind: str, rng: np.random.Generator) -> dict[str, bytes]:
    """Return the files of a sound record, which is read once, so that whatever is imported late is imported now."""
    folder.mkdir()
    KINDS[kind](folder, rng)
    read_recording(folder / "r", allow_missing=True)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fuzz(n: int, seed: int, kinds: list[str] | None = None) -> tuple[dict[str, Counter[str]], list[str]]:
    """Break and read n records.

    Returns:
        Counts of outcomes by kind of record, and a line for each failure.
    """
    rng = np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds or KINDS}
    failures = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outside = Path(scratch) / "outside"
        outside.mkdir()
        (outside / "secret.dat").write_bytes(_counts(rng).astype("<i2").tobytes())
        _header(outside, "secret", "secret.dat", "16")
        sound = {kind: _sound(Path(scratch) / kind, kind, rng) for kind in counts}
        with limited():
            for case in range(n):
                kind = list(counts)[case % len(counts)]
                folder = Path(scratch) / "box"
                folder.mkdir()
                build(folder, sound[kind], rng, outside)
                found = outcome(folder / "r", allow_missing=bool(rng.integers(2)))
                counts[kind][found if found in ("read", "refused") else "failed"] += 1
                if found not in ("read", "refused"):
                    failures.append(f"case {case} ({kind}): {found}")
                shutil.rmtree(folder)
    return counts, failures


def main() -> int:
    """Run it; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, failures = fuzz(options.n, options.seed)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    total: Counter[str] = sum(counts.values(), Counter())
    for kind, found in counts.items():
        print(f"{kind:20} read {found['read']:5}  refused {found['refused']:5}  failed {found['failed']:3}")
    print(f"{'all':20} read {total['read']:5}  refused {total['refused']:5}  failed {total['failed']:3}", end="  ")
    print(f"in {time.perf_counter() - begun:.0f} s, memory grown by {grown:.0f} MB")
    for line in failures[:20]:
        print(line)
    if options.out:
        _write(options, counts, total, grown)
    return 1 if failures else 0


def _write(options: argparse.Namespace, counts: dict[str, Counter[str]], total: Counter[str], grown: float) -> None:
    """Write the counts with their provenance."""
    from ecgchat_lib.course.provenance import git_commit, library_hash, versions
    from ecgchat_lib.paths import project_root

    used = ("python", "numpy", "scipy", "wfdb")
    content = {
        "what": "broken records of known kinds: read, refused in one line, or failed (see benchmarks/fuzz_reading.py)",
        "n": options.n,
        "seed": options.seed,
        "all": {outcome: total[outcome] for outcome in ("read", "refused", "failed")},
        "by_kind": {k: {o: c[o] for o in ("read", "refused", "failed")} for k, c in counts.items()},
        "limits": {"seconds": SECONDS, "extra_memory_mb": MEMORY // 10**6, "peak_memory_grown_by_mb": round(grown)},
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "versions": {name: version for name, version in versions().items() if name in used},
        },
    }
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, options.out)


if __name__ == "__main__":
    sys.exit(main())
