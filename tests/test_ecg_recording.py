from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.ecg import recording as module
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import Patient, Recording, model_window, read_recording, write_recording
from ecgchat_lib.errors import ParameterError, RecordError
from ecgchat_lib.paths import data_folder

SAMPLE = data_folder() / "real_sample"
SAMPLES = sorted(path.with_suffix("") for path in SAMPLE.glob("*.hea"))


def integers(time=500, seed=0, leads=12):
    return np.random.default_rng(seed).integers(-2000, 2000, size=(time, leads)).astype("<i2")


def header(name="r", n=12, fs="500", samples="500", file="r.dat", fmt="16", gain="1000(0)/mV", names=LEADS, tail=()):
    first = " ".join(part for part in (name, str(n), fs, samples) if part)
    lines = [first, *(f"{file} {fmt} {gain} 16 0 0 0 0 {lead}" for lead in names), *tail]
    return "\n".join(lines) + "\n"


def put(folder, text=None, data=None, name="r"):
    (folder / f"{name}.hea").write_text(header() if text is None else text, encoding="utf-8")
    (folder / f"{name}.dat").write_bytes(integers().tobytes() if data is None else data)
    return folder / name


# --- what is right -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_reads_what_wfdb_reads(path):
    signal, fields = wfdb.rdsamp(str(path))
    found = read_recording(path)
    assert found.fs == fields["fs"]
    assert found.signal.dtype == np.float32
    assert found.signal.flags.c_contiguous
    assert np.array_equal(found.signal, signal.T.astype(np.float32))
    assert found.leads == LEADS
    assert found.notes == ()
    assert found.patient.sex in ("male", "female")
    assert 29 <= found.patient.age <= 82
    assert found.name == path.name


def test_the_card_of_the_sample_holds_the_files_hashes():
    rows = re.findall(
        r"^\| (A\d{4}\.\w+) \| (\d+) \| `([0-9a-f]{64})` \|$", (SAMPLE / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(name for name, _, _ in rows) == sorted(path.name for path in SAMPLE.glob("A*"))
    for name, size, digest in rows:
        content = (SAMPLE / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size), digest)


@pytest.mark.parametrize("suffix", ["", ".hea", ".mat", ".dat"])
def test_any_extension(suffix):
    assert np.array_equal(read_recording(f"{SAMPLES[0]}{suffix}").signal, read_recording(SAMPLES[0]).signal)


def test_leads_by_name_in_any_order_and_spelling(tmp_path):
    names = ["v6", "Lead II", "AVR", "i", "V1", "MDC_ECG_LEAD_V2", "avl", "III", "v3 ", "AVF", "V4", "ECG_V5"]
    counts = integers()
    found = read_recording(put(tmp_path, header(names=names), counts.tobytes()))
    for lead, column in (("V6", 0), ("II", 1), ("aVR", 2), ("I", 3), ("V5", 11)):
        assert np.allclose(found.lead(lead), counts[:, column] / 1000)
    assert found.notes == ("leads put into the standard order",)


def test_other_signals_are_left_out_and_named(tmp_path):
    counts = integers(leads=15)
    found = read_recording(put(tmp_path, header(n=15, names=["vx", "vy", *LEADS, "RESP"]), counts.tobytes()))
    assert np.allclose(found.signal, counts[:, 2:14].T / 1000)
    assert found.notes == ("signals left out: vx, vy, RESP",)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("mV", 1), ("mv", 1), ("uV", 1e-3), ("µV", 1e-3), ("μV", 1e-3), ("V", 1e3), ("nV", 1e-6), ("", 1)],
)
def test_units_become_millivolts(tmp_path, unit, factor):
    counts = integers()
    gain = f"{1000 * factor!r}(0)" + (f"/{unit}" if unit else "")
    found = read_recording(put(tmp_path, header(gain=gain), counts.tobytes()))
    assert np.allclose(found.signal, counts.T / 1000, rtol=1e-6)
    assert (f"{unit} converted to mV" in found.notes) == (factor != 1)


def test_the_baseline_and_the_adc_zero(tmp_path):
    counts = integers()
    found = read_recording(put(tmp_path, header(gain="500(30)/mV"), counts.tobytes()))
    assert np.allclose(found.signal, (counts.T - 30.0) / 500)
    without = header(gain="500/mV").replace(" 16 0 0 0 0 ", " 16 -7 0 0 0 ")  # no baseline: the ADC's zero is it
    assert np.allclose(read_recording(put(tmp_path, without, counts.tobytes())).signal, (counts.T + 7.0) / 500)


def test_a_missing_gain_is_wfdbs_default_and_noted(tmp_path):
    text = "\n".join(["r 12 500 500", *(f"r.dat 16 200/mV 16 0 0 0 0 {lead}" for lead in LEADS)])
    expected = read_recording(put(tmp_path, text)).signal
    assert np.allclose(expected, integers().T / 200)


@pytest.mark.parametrize(("fmt", "dtype"), [("16", "<i2"), ("61", ">i2"), ("32", "<i4")])
def test_other_formats_and_byte_offsets(tmp_path, fmt, dtype):
    counts = integers()
    data = b"x" * 24 + counts.astype(dtype).tobytes()
    found = read_recording(put(tmp_path, header(fmt=f"{fmt}x1+24"), data))
    assert np.allclose(found.signal, counts.T / 1000)


@pytest.mark.parametrize("fmt", ["80", "212", "24", "32", "516", "524"])
@pytest.mark.parametrize("time", [500, 501, 503])
def test_every_format_that_wfdb_writes(tmp_path, fmt, time):
    highest = 100 if fmt == "80" else 500
    counts = np.random.default_rng(0).integers(-highest, highest, size=(time, 12))
    fields = {"fs": 500, "units": ["mV"] * 12, "sig_name": list(LEADS), "fmt": [fmt] * 12, "write_dir": str(tmp_path)}
    wfdb.wrsamp("r", d_signal=counts, adc_gain=[100.0] * 12, baseline=[0] * 12, **fields)
    assert np.allclose(read_recording(tmp_path / "r").signal, counts.T / 100)


@pytest.mark.parametrize("fmt", ["310", "311"])
def test_formats_that_wfdb_only_reads(tmp_path, fmt):
    counts = np.random.default_rng(0).integers(0, 256, size=12 * 501 // 3 * 4).astype("u1")
    path = put(tmp_path, header(fmt=fmt, samples="501"), counts.tobytes())
    signal, _ = wfdb.rdsamp(str(path))
    assert np.allclose(read_recording(path, allow_missing=True).signal, signal.T, equal_nan=True)


def test_one_file_for_each_lead(tmp_path):
    counts = integers()
    lines = ["r 12 500 500"]
    for column, lead in enumerate(LEADS):
        (tmp_path / f"part{column}.dat").write_bytes(counts[:, column].tobytes())
        lines.append(f"part{column}.dat 16 1000(0)/mV 16 0 0 0 0 {lead}")
    (tmp_path / "r.hea").write_text("\n".join(lines))
    assert np.allclose(read_recording(tmp_path / "r").signal, counts.T / 1000)


def test_what_wfdb_itself_refuses_but_people_have(tmp_path):
    text = header(name="r.mat", file="strange name".replace(" ", ".v2.") + ".dat")  # dots in both names
    (tmp_path / "strange.v2.name.dat").write_bytes(integers().tobytes())
    (tmp_path / "my.record.hea").write_text(text)
    found = read_recording(tmp_path / "my.record")
    assert found.name == "my.record"
    assert np.allclose(found.signal, integers().T / 1000)


def test_length_taken_from_the_file_and_rest_of_the_file_left(tmp_path):
    found = read_recording(put(tmp_path, header(samples="")))
    assert found.signal.shape == (12, 500)
    assert "the header gives no length" in found.notes[0]
    found = read_recording(put(tmp_path, header(samples="400")))
    assert found.signal.shape == (12, 400)
    assert "500 samples" in found.notes[0]


def test_a_very_long_record_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_VALUES", 12 * 300)
    found = read_recording(put(tmp_path))
    assert found.signal.shape == (12, 300)
    assert found.notes == ("cut to its first 1 of 1 seconds",)


@pytest.mark.parametrize(
    ("comments", "age", "sex"),
    [
        (["# Age: 74", "# Sex: Male"], 74, "male"),
        (["#<age>: 56", "#<sex>: F"], 56, "female"),
        (["#age: 81", "#sex: female", "#Diagnose: Sex: Male"], 81, "female"),
        (["# Age: NaN", "# Sex: Unknown"], None, None),
        (["# Age: 300"], None, None),
        (["# Gender: F", "# page: 12"], None, "female"),
        (["# Patient age 63 years"], 63, None),
        ([], None, None),
    ],
)
def test_age_and_sex(tmp_path, comments, age, sex):
    assert read_recording(put(tmp_path, header(tail=comments))).patient == Patient(age, sex)


def test_latin_1_and_utf_8_comments(tmp_path):
    put(tmp_path)
    (tmp_path / "r.hea").write_bytes(header(tail=["# Müller"]).encode("latin-1"))
    assert read_recording(tmp_path / "r").comments == ("Müller",)


# --- what is wrong: each case builds its files and names what the one line must say ------------------------------


def nan_in_one_lead(folder):
    counts = integers()
    counts[100:150, 3] = -32768
    put(folder, data=counts.tobytes())


def all_missing(folder):
    put(folder, data=np.full((500, 12), -32768, dtype="<i2").tobytes())


def one_lead_missing(folder):
    counts = integers()
    counts[:, 3] = -32768
    put(folder, data=counts.tobytes())


def only_the_folder(folder):
    (folder / "r").mkdir()


def matlab_5(folder):
    (folder / "r.hea").write_text(header(file="r.mat", fmt="16+24"))
    (folder / "r.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(12100))


def other_kind_of_file(folder):
    (folder / "r").write_text("time,I,II\n0,0.1,0.2\n")


def header_is_a_folder(folder):
    (folder / "r.hea").mkdir()


def data_is_a_folder(folder):
    (folder / "r.hea").write_text(header())
    (folder / "r.dat").mkdir()


def missing_dat(folder):
    (folder / "r.hea").write_text(header())


def missing_hea(folder):
    (folder / "r.dat").write_bytes(integers().tobytes())


HOSTILE = {
    "no such file": (lambda f: None, "no such record"),
    "missing .hea": (missing_hea, "no such record|is missing"),
    "missing .dat": (missing_dat, "signal file is missing"),
    "a folder": (only_the_folder, "a folder"),
    "a header that is a folder": (header_is_a_folder, "no such record|a folder"),
    "a .dat that is a folder": (data_is_a_folder, "signal file is missing"),
    "a csv file": (other_kind_of_file, "not a WFDB record"),
    "MATLAB 5": (matlab_5, "MATLAB 5"),
    "empty header": (lambda f: put(f, ""), "empty header"),
    "comments only": (lambda f: put(f, "# nothing\n"), "comments only"),
    "text garbage": (lambda f: put(f, "Dear Sir or Madam,\nplease find enclosed"), "not a WFDB header"),
    "binary garbage": (lambda f: put(f, "\0\1\2\3" * 50), "not a text header"),
    "huge header": (lambda f: put(f, header(tail=["#" + "x" * 2_000_000])), "a header of"),
    "no signal": (lambda f: put(f, "r 0 500 500\n"), "no signal"),
    "too many signals": (lambda f: put(f, "r 999999999999 500 500\n"), "signals announced"),
    "a billion samples": (lambda f: put(f, header(samples="1000000000")), "truncated"),
    "more than a number": (lambda f: put(f, header(samples="9" * 40)), "samples announced"),
    "negative samples": (lambda f: put(f, header(samples="-500")), "samples announced"),
    "more samples than the file": (lambda f: put(f, header(samples="501")), "truncated"),
    "truncated .dat": (lambda f: put(f, data=integers().tobytes()[:-100]), "truncated"),
    "one byte short": (lambda f: put(f, data=integers().tobytes()[:-1]), "truncated"),
    "empty .dat": (lambda f: put(f, data=b""), "empty signal file"),
    "a .dat of three bytes": (lambda f: put(f, data=b"abc"), "truncated|no signal"),
    "a .dat of three bytes, no length": (lambda f: put(f, header(samples=""), data=b"abc"), "no signal"),
    "offset behind the end": (lambda f: put(f, header(fmt="16+999999999")), "truncated|no signal"),
    "frames of ten thousand": (lambda f: put(f, header(fmt="16x10000")), "truncated|no signal"),
    "frames of a million": (lambda f: put(f, header(fmt="16x1000000")), "samples per frame"),
    "huge skew": (lambda f: put(f, header(fmt="16:999999999")), "skew"),
    "zero fs": (lambda f: put(f, header(fs="0")), "sampling rate of 0"),
    "negative fs": (lambda f: put(f, header(fs="-500")), "sampling rate of -500"),
    "nan fs": (lambda f: put(f, header(fs="nan")), "sampling rate of nan"),
    "huge fs": (lambda f: put(f, header(fs="1e300")), "sampling rate of 1e300"),
    "no fs": (lambda f: put(f, header(fs="", samples="")), "no sampling rate"),
    "fewer lines than signals": (lambda f: put(f, header(n=13)), "13 signals announced but 12"),
    "more lines than signals": (lambda f: put(f, header(n=11)), "11 signals announced but 12"),
    "zero gain": (lambda f: put(f, header(gain="0/mV")), "gain of 0"),
    "negative gain": (lambda f: put(f, header(gain="-1000/mV")), "impossible"),
    "nan gain": (lambda f: put(f, header(gain="nan/mV")), "a gain that is no number"),
    "tiny gain": (lambda f: put(f, header(gain="1e-300/mV")), "impossible"),
    "a gain that makes kilovolts": (lambda f: put(f, header(gain="1e-5/mV")), "which no heart gives"),
    "a gain that flattens": (lambda f: put(f, header(gain="1e9/mV")), "flat"),
    "strange baseline": (lambda f: put(f, header(gain="1000(x)/mV")), "baseline"),
    "huge baseline": (lambda f: put(f, header(gain="1000(99999999999)/mV")), "which no heart gives|can't decode"),
    "unknown unit": (lambda f: put(f, header(gain="1000/mmHg")), "unit 'mmHg'"),
    "unknown format": (lambda f: put(f, header(fmt="17")), "format 17"),
    "a word as format": (lambda f: put(f, header(fmt="sixteen")), "can't be understood"),
    "absolute file": (lambda f: put(f, header(file="/etc/passwd")), "outside the record's folder"),
    "file in a parent": (lambda f: put(f, header(file="../r.dat")), "outside the record's folder"),
    "file on a drive": (lambda f: put(f, header(file="C:r.dat")), "outside the record's folder"),
    "standard input": (lambda f: put(f, header(file="-")), "outside the record's folder"),
    "a web address": (lambda f: put(f, header(file="http://example.org/r.dat")), "outside the record's folder"),
    "two formats, one file": (
        lambda f: put(f, header().replace("r.dat 16 1000(0)/mV 16 0 0 0 0 V6", "r.dat 32 1000(0)/mV 16 0 0 0 0 V6")),
        "two formats",
    ),
    "several segments": (lambda f: put(f, "r/3 12 500 500\nr1 200\nr2 200\nr3 100\n"), "several segments"),
    "eleven leads": (
        lambda f: put(f, header(n=11, names=LEADS[:-1]), integers(leads=11).tobytes()),
        "11 of 12 leads, without V6",
    ),
    "one lead": (lambda f: put(f, header(n=1, names=["II"]), integers(leads=1).tobytes()), "1 of 12 leads"),
    "no lead by name": (lambda f: put(f, header(names=[f"ch{k}" for k in range(12)])), "0 of 12 leads"),
    "no names": (lambda f: put(f, header(names=[""] * 12)), "0 of 12 leads"),
    "the same lead twice": (
        lambda f: put(f, header(n=13, names=[*LEADS, "AVR"]), integers(leads=13).tobytes()),
        "lead aVR twice",
    ),
    "missing samples": (nan_in_one_lead, "50 missing samples .NaN. in aVR"),
    "a missing lead": (one_lead_missing, "aVR hold only missing samples"),
    "all missing": (all_missing, "every sample is marked as missing"),
    "flat": (lambda f: put(f, data=np.ones((500, 12), "<i2").tobytes()), "flat"),
    "zeros": (lambda f: put(f, data=bytes(12000)), "flat"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_records_get_one_clear_line(tmp_path, case):
    build, expected = HOSTILE[case]
    build(tmp_path)
    with pytest.raises(RecordError) as caught:
        read_recording(tmp_path / "r")
    line = str(caught.value)
    assert re.search(expected, line), line
    assert "\n" not in line
    assert len(line) < 400 + len(str(tmp_path))
    assert str(tmp_path / "r") in line  # names the file
    assert caught.value.remedy  # and what to do
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", ["", ".", "..", "/", "/nonexistent/r", "a\0b", "x" * 5000])
def test_paths_that_are_none(path):
    with pytest.raises(RecordError):
        read_recording(path)


def test_missing_samples_can_be_kept(tmp_path):
    nan_in_one_lead(tmp_path)
    found = read_recording(tmp_path / "r", allow_missing=True)
    assert np.isnan(found.lead("aVR")[100:150]).all()
    assert np.isnan(found.signal).sum() == 50
    assert found.notes == ("50 missing samples (NaN) kept",)


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    read_recording(SAMPLES[0])
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_headers_are_read_or_refused_never_worse(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mutated")
    text = header(tail=["# Age: 50"])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        what = data.draw(
            st.sampled_from(["", "0", "9" * 12, "-", "/", "\n", " ", "x", "\t", "é", "nan", ":", "+", "(", ")", "."])
        )
        text = text[:at] + what + text[at + data.draw(st.integers(0, 3)) :]
    try:
        found = read_recording(put(folder, text))
    except RecordError as error:
        found, line = None, str(error)
    if found is None:
        assert "\n" not in line
    else:
        assert found.signal.shape[0] == 12
        assert found.signal.shape[1] <= 500
        assert np.isfinite(found.signal).all()
    shutil.rmtree(folder)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_as_header(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    put(folder)
    (folder / "r.hea").write_bytes(content)
    with pytest.raises(RecordError):
        read_recording(folder / "r")
    shutil.rmtree(folder)


# --- writing -----------------------------------------------------------------------------------------------------


def some_recording(time=700, seed=0, **changes):
    signal = np.random.default_rng(seed).normal(0, 1, (12, time)).astype(np.float32)
    return replace(Recording("some-1", signal, 500.0, patient=Patient(61, "female"), comments=("Dx: 1",)), **changes)


@settings(max_examples=20, deadline=None)
@given(
    time=st.integers(1, 800),
    fs=st.sampled_from([100.0, 250.0, 360.0, 500.0, 1000.0, 257.5]),
    gain=st.sampled_from([200.0, 1000.0, 4000.0]),
    seed=st.integers(0, 99),
)
def test_round_trip_to_half_a_step(tmp_path_factory, time, fs, gain, seed):
    folder = tmp_path_factory.mktemp("trip")
    written = some_recording(time + 1, seed, fs=fs)
    path = write_recording(written, folder, adc_gain=gain)
    signal, fields = wfdb.rdsamp(str(path))
    found = read_recording(path)
    assert np.array_equal(found.signal, signal.T.astype(np.float32))
    assert np.abs(found.signal - written.signal).max() <= 0.5 / gain + 1e-6
    assert fields["fs"] == found.fs == fs
    again = read_recording(write_recording(found, folder, adc_gain=gain))
    assert np.array_equal(again.signal, found.signal)  # to the LSB
    assert again.patient == Patient(61, "female")
    assert again.comments == found.comments == ("Age: 61", "Sex: Female", "Dx: 1")
    assert sorted(p.name for p in folder.iterdir()) == ["some-1.dat", "some-1.hea"]


def test_missing_samples_survive_the_round_trip(tmp_path):
    written = some_recording()
    written.signal[4, 10:20] = np.nan
    found = read_recording(write_recording(written, tmp_path), allow_missing=True)
    assert np.array_equal(np.isnan(found.signal), np.isnan(written.signal))


@pytest.mark.parametrize("path", SAMPLES[:3], ids=lambda path: path.name)
def test_a_real_record_survives_the_round_trip(tmp_path, path):
    original = read_recording(path)
    assert np.array_equal(read_recording(write_recording(original, tmp_path)).signal, original.signal)


def test_what_can_not_be_written(tmp_path):
    with pytest.raises(ParameterError, match="at most"):
        write_recording(some_recording(), tmp_path, adc_gain=1e6)
    with pytest.raises(ParameterError, match="adc_gain"):
        write_recording(some_recording(), tmp_path, adc_gain=float("nan"))
    with pytest.raises(ParameterError, match="record name"):
        write_recording(some_recording(name="../x"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_recording_has_twelve_leads():
    with pytest.raises(ParameterError, match="shape"):
        Recording("x", np.zeros((3, 10), np.float32), 500.0)
    with pytest.raises(ParameterError, match="leads"):
        Recording("x", np.zeros((12, 10), np.float32), 500.0, leads=LEADS[::-1])
    with pytest.raises(ParameterError, match="fs"):
        Recording("x", np.zeros((12, 10), np.float32), 0.0)
    with pytest.raises(ParameterError, match="not one of"):
        some_recording().lead("V7")


# --- the models' window ------------------------------------------------------------------------------------------


def test_window_of_the_right_length_is_the_signal():
    original = read_recording(SAMPLES[1])
    window, notes = model_window(original)
    assert np.array_equal(window, original.signal)
    assert notes == ()


def test_long_short_and_gappy_windows_say_so():
    window, notes = model_window(some_recording(9000))
    assert window.shape == (12, 5000)
    assert notes == ("the first 10 of 18.0 s",)
    window, notes = model_window(some_recording(700))
    assert (window[:, 700:] == 0).all()
    assert notes == ("padded with zeros from 1.4 to 10 s",)
    gappy = some_recording(5000)
    gappy.signal[2, :7] = np.nan
    window, notes = model_window(gappy)
    assert np.isfinite(window).all()
    assert notes == ("7 missing samples set to 0",)


@given(
    time=st.integers(1, 3000),
    fs=st.sampled_from([100.0, 257.3, 500.0, 1000.0]),
    model_fs=st.sampled_from([100.0, 500.0]),
    seconds=st.sampled_from([1.0, 2.5]),
)
@settings(max_examples=30, deadline=None)
def test_windows_have_the_model_s_shape(time, fs, model_fs, seconds):
    window, _ = model_window(some_recording(time, fs=fs), fs=model_fs, seconds=seconds)
    assert window.shape == (12, round(model_fs * seconds))
    assert window.dtype == np.float32


# --- the folder of real recordings -------------------------------------------------------------------------------


@pytest.mark.real_data
def test_reads_every_ludb_record_as_wfdb_does(tmp_path):
    root = os.environ.get("ECGCHAT_REAL_DATA")
    if not root:
        pytest.skip("ECGCHAT_REAL_DATA isn't set: LUDB not checked")
    with tarfile.open(Path(root) / "ludb" / "ludb_1_50_wfdb.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    for number in range(1, 51):
        path = tmp_path / "data" / str(number)
        signal, _ = wfdb.rdsamp(str(path))
        found = read_recording(path)
        assert np.allclose(found.signal, signal.T, atol=1e-6)
        assert found.patient.age is None or 0 < found.patient.age < 100
