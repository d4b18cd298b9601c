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
import scipy.io
import wfdb
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ecgchat_lib.ecg import recording as module
from ecgchat_lib.ecg import samples as samples_module
from ecgchat_lib.ecg.filters import resample
from ecgchat_lib.ecg.leads import LEADS, canonical_lead
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


# --- both ways of decoding, several rates, several segments, MATLAB ------------------------------------------------


@st.composite
def plain_records(draw):
    """Header and bytes of a record in format 16, and what else is in its folder."""
    names = draw(st.permutations([*LEADS, *draw(st.sampled_from([[], ["RESP"], ["vx", "vy", "vz"]]))]))
    time, offset = draw(st.integers(2, 300)), draw(st.sampled_from([0, 1, 24, 130]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(-32767, 32768, size=(time, len(names))).astype("<i2")
    for _ in range(draw(st.integers(0, 3))):  # missing samples
        counts[rng.integers(time), rng.integers(len(names))] = -32768
    number = st.one_of(st.sampled_from([1000.0, 200.0, 204.8, 1716.0, 0.1]), st.floats(10, 1e5, allow_nan=False))
    base = st.one_of(st.just(0), st.integers(-40000, 40000), st.integers(-(2**31), 2**31))
    lines = [f"r {len(names)} 500 {time}"]
    skewed, skew_of_some = draw(st.booleans()), draw(st.integers(0, time - 1))  # wfdb fails where two skews differ
    for name in names:
        skew = f":{draw(st.sampled_from([0, skew_of_some]))}" if skewed else ""
        gain = f"{draw(number)!r}({draw(base)})" if draw(st.booleans()) else "1000"
        unit = draw(st.sampled_from(["mV", "mV", "mV", "uV"]))
        lines.append(f"r.dat 16{skew}+{offset} {gain}/{unit} 16 {draw(st.integers(-9, 9))} 0 0 0 {name}")
    return "\n".join(lines) + "\n", bytes(offset) + counts.tobytes() + bytes(draw(st.integers(0, 50)))


@settings(max_examples=60, deadline=None)
@given(plain_records())
def test_the_plain_way_is_wfdbs_rounded_to_float32(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("plain")
    path = put(folder, *record)
    try:
        found = read_recording(path, allow_missing=True)
    except RecordError as error:
        assume(re.search("which no heart gives|flat|only missing|marked as missing", str(error)) is None)
        raise
    theirs = wfdb.rdrecord(str(path))
    rows = [[canonical_lead(name) for name in theirs.sig_name].index(lead) for lead in LEADS]
    factors = np.array([{"mV": 1.0, "uV": 1e-3}[theirs.units[row]] for row in rows])
    expected = (theirs.p_signal[:, rows] * factors).T.astype(np.float32)
    assert np.array_equal(found.signal, expected, equal_nan=True)
    shutil.rmtree(folder)


@settings(max_examples=25, deadline=None)
@given(plain_records())
def test_both_ways_of_decoding_are_one(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("both")
    results = []
    for plain in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if plain:
                patch.setattr(samples_module, "_read_with_wfdb", None)  # it isn't called
            else:
                patch.setattr(samples_module, "is_plain", lambda header: False)
            try:
                found = read_recording(put(folder, *record), allow_missing=True)
                results.append((found.signal.tobytes(), found.notes))
            except RecordError as error:
                results.append(str(error))
    assert results[0] == results[1]
    shutil.rmtree(folder)


@pytest.mark.parametrize("fmt", ["16", "32"])
def test_skewed_signals_are_put_right(tmp_path, fmt):
    stored = np.zeros((510, 12), dtype="<i2" if fmt == "16" else "<i4")
    truth = integers()
    skews = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]
    for column, skew in enumerate(skews):
        stored[skew : skew + 500, column] = truth[:, column]
    lines = [f"r.dat {fmt}:{skew} 1000/mV 16 0 0 0 0 {lead}" for skew, lead in zip(skews, LEADS, strict=True)]
    found = read_recording(put(tmp_path, "\n".join(["r 12 500 510", *lines]), stored.tobytes()), allow_missing=True)
    assert np.array_equal(found.signal[:, :500], truth.T / np.float32(1000))
    assert [int(gap) for gap in np.isnan(found.signal).sum(axis=1)] == skews  # the end of a late signal isn't stored


def test_the_sample_is_read_the_plain_way(monkeypatch):
    monkeypatch.setattr(samples_module, "_read_with_wfdb", None)
    for path in SAMPLES:
        read_recording(path)


def test_several_samples_per_frame_of_every_lead(tmp_path):
    counts = integers(time=125).repeat(4, axis=1) + np.tile(np.arange(4), 12).astype("<i2")
    path = put(tmp_path, header(fs="125", samples="125", fmt="16x4"), counts.astype("<i2").tobytes())
    found = read_recording(path)
    theirs = wfdb.rdrecord(str(path), smooth_frames=False)
    assert found.fs == 500
    assert found.signal.shape == (12, 500)
    assert np.array_equal(found.signal, np.array(theirs.e_p_signal, dtype=np.float32))
    assert found.notes == ()


def test_leads_at_several_rates_come_to_the_fastest(tmp_path):
    per_frame = [4] * 8 + [2] * 2 + [1] * 2
    seconds = 4
    waves = [np.rint(1000 * np.sin(2 * np.pi * 3 * np.arange(seconds * 125 * k) / (125 * k))) for k in per_frame]
    frames = np.concatenate([wave.reshape(-1, k) for wave, k in zip(waves, per_frame, strict=True)], axis=1)
    lines = [f"r.dat 16x{k} 1000(0)/mV 16 0 0 0 0 {lead}" for k, lead in zip(per_frame, LEADS, strict=True)]
    text = "\n".join([f"r 13 125 {seconds * 125}", *lines, "r.dat 16x8 1000/mmHg 16 0 0 0 0 ABP"])
    frames = np.concatenate([frames, np.zeros((len(frames), 8))], axis=1)
    found = read_recording(put(tmp_path, text, frames.astype("<i2").tobytes()))
    assert found.fs == 500  # the fastest lead's; the pressure isn't a lead
    assert found.signal.shape == (12, seconds * 500)
    assert np.array_equal(found.lead("I"), (waves[0] / 1000).astype(np.float32))
    assert np.array_equal(found.lead("V6"), resample((waves[-1] / 1000).astype(np.float32), 125, 500))
    inside = slice(100, -100)
    assert np.abs(found.signal[:, inside] - found.lead("I")[inside]).max() < 0.01
    assert found.notes == (
        "signals left out: ABP",
        "V3, V4, V5, V6 resampled from 125 and 250 to 500 Hz, the fastest lead's rate",
    )


def test_missing_samples_stay_missing_at_another_rate(tmp_path):
    counts = integers(time=100, leads=23)  # lead I once, the others twice in a frame
    counts[50, 0] = -32768
    lines = [f"r.dat 16x{1 if lead == 'I' else 2} 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS]
    found = read_recording(put(tmp_path, "\n".join(["r 12 250 100", *lines]), counts.tobytes()), allow_missing=True)
    missing = np.flatnonzero(np.isnan(found.lead("I")))
    assert 100 in missing
    assert abs(missing - 100).max() <= 1
    assert not np.isnan(found.signal[1:]).any()


def test_segments_with_the_same_leads_are_joined(tmp_path):
    for k in range(3):
        put(tmp_path, header(name=f"s{k}", file=f"s{k}.dat", tail=["# Age: 50"]), integers(seed=k).tobytes(), f"s{k}")
    (tmp_path / "r.hea").write_text("r/4 12 500 2000\ns0 500\ns1 500\ns2 500\ns1 500\n# Sex: F\n")
    found = read_recording(tmp_path / "r")
    assert np.array_equal(found.signal, wfdb.rdsamp(str(tmp_path / "r"))[0].T.astype(np.float32))
    assert np.array_equal(found.signal[:, 500:1000], found.signal[:, 1500:])
    assert found.notes == ("joined from 4 segments",)
    assert found.patient == Patient(50, "female")


def variable_layout(folder):
    """Three segments and a gap: all leads in another order, a gap, six leads, and twelve with another gain."""
    (folder / "layout.hea").write_text(header(name="layout", file="~", fmt="0", samples="0"))
    put(folder, header(name="a", file="a.dat", names=LEADS[::-1]), integers(seed=1).tobytes(), "a")
    six = header(name="b", n=6, samples="300", file="b.dat", names=LEADS[:6])
    put(folder, six, integers(300, 2, 6).tobytes(), "b")
    put(folder, header(name="c", file="c.dat", gain="500(7)/mV"), integers(seed=3).tobytes(), "c")
    (folder / "r.hea").write_text("r/5 12 500 1500\nlayout 0\na 500\n~ 200\nb 300\nc 500\n")
    return folder / "r"


def test_segments_with_a_layout_and_a_gap(tmp_path):
    path = variable_layout(tmp_path)
    with pytest.raises(RecordError, match="missing samples"):
        read_recording(path)
    found = read_recording(path, allow_missing=True)
    theirs, _ = wfdb.rdsamp(str(path))
    assert np.array_equal(found.signal, theirs.T.astype(np.float32), equal_nan=True)
    assert np.isnan(found.signal[:, 500:700]).all()
    assert np.isnan(found.signal[6:, 700:1000]).all()
    assert np.isfinite(found.signal[:6, 700:]).all()
    assert found.notes == (
        "joined from 4 segments",
        "3800 missing samples (NaN) kept".replace("3800", str(2400 + 1800)),
    )


def test_segments_at_two_rates(tmp_path):
    put(tmp_path, header(name="a", file="a.dat", fs="250", samples="250", fmt="16x2"), integers().tobytes(), "a")
    put(tmp_path, header(name="b", file="b.dat", fs="250", samples="500"), integers(seed=1).tobytes(), "b")
    (tmp_path / "r.hea").write_text("r/2 12 250 750\na 250\nb 500\n")
    found = read_recording(tmp_path / "r")
    assert found.fs == 500
    assert found.signal.shape == (12, 1500)
    assert np.array_equal(found.signal[:, 500:], resample((integers(seed=1).T / 1000).astype(np.float32), 250, 500))
    assert "resampled from 250 to 500 Hz" in found.notes[-1]


def test_a_long_record_of_segments_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_VALUES", 12 * 700)
    segments(tmp_path, "part 500", "part 500", "part 500")
    found = read_recording(tmp_path / "r")
    assert np.array_equal(found.signal, np.concatenate([integers(), integers()[:200]]).T / np.float32(1000))
    assert found.notes == ("joined from 3 segments", "cut to its first 1 of 3 seconds")


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint16", "float32", "float64"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("upright", [False, True])
def test_matlab_5(tmp_path, dtype, compressed, upright):
    values = np.random.default_rng(0).integers(0, 100, size=(12, 500)).astype(dtype)
    content = {"something": {"else": np.ones(5)}, "val": values.T if upright else values, "words": "here"}
    mat_5(tmp_path, content, compressed=compressed)
    found = read_recording(tmp_path / "r")
    assert np.array_equal(found.signal, (values / 1000).astype(np.float32))
    assert found.notes == ("r.mat is a MATLAB 5 file; its matrix val is read, whatever format the header gives",)


def test_missing_samples_of_matlab_5(tmp_path):
    values = integers().T.copy()
    values[3, 7] = -32768
    mat_5(tmp_path, {"val": values})
    assert np.isnan(read_recording(tmp_path / "r", allow_missing=True).signal).sum() == 1
    mat_5(tmp_path, {"val": np.where(values == -32768, np.nan, values)})
    assert np.isnan(read_recording(tmp_path / "r", allow_missing=True).signal).sum() == 1


def test_a_compressed_matrix_is_not_unpacked_for_ever(tmp_path):
    mat_5(tmp_path, {"val": np.zeros((12, 2_000_000), "int16")}, compressed=True)
    with pytest.raises(RecordError, match="truncated matrix"):
        read_recording(tmp_path / "r")


def test_a_link_inside_the_folder_may_stay(tmp_path):
    put(tmp_path)
    (tmp_path / "r.dat").rename(tmp_path / "real.dat")
    (tmp_path / "r.dat").symlink_to("real.dat")
    assert read_recording(tmp_path / "r").signal.shape == (12, 500)


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


def circle(folder):
    put(folder, "r/1 12 500 500\nround 500\n")
    (folder / "round.hea").write_text("round/1 12 500 500\nr 500\n")


def segments(folder, *lines, n=12, fs="500", samples=""):
    """A record of segments; `part` is a sound one of 500 samples."""
    put(folder, header(name="part", file="part.dat"), name="part")
    (folder / "r.hea").write_text("\n".join([f"r/{len(lines)} {n} {fs} {samples}", *lines]))


def layout_alone(folder):
    (folder / "r.hea").write_text(header(file="~", fmt="0", samples="0"))


def link_to_elsewhere(folder):
    secret = folder.parent / f"{folder.name}-elsewhere.dat"
    secret.write_bytes(integers().tobytes())
    (folder / "r.hea").write_text(header())
    (folder / "r.dat").symlink_to(secret)


def link_to_itself(folder):
    (folder / "r.hea").write_text(header())
    (folder / "r.dat").symlink_to("r.dat")


def pipe(folder):
    (folder / "r.hea").write_text(header())
    os.mkfifo(folder / "r.dat")


def matlab_4(folder, values):
    scipy.io.savemat(folder / "r.mat", {"val": values}, format="4")
    (folder / "r.hea").write_text(header(file="r.mat", fmt="16+24"))


def mat_5(folder, content, part=slice(None), compressed=False):
    scipy.io.savemat(folder / "r.mat", content, do_compression=compressed)
    (folder / "r.mat").write_bytes((folder / "r.mat").read_bytes()[part])
    (folder / "r.hea").write_text(header(file="r.mat", fmt="16+24"))


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
    "segments that are not there": (lambda f: put(f, "r/2 12 500 500\nr1 200\nr2 300\n"), "r1.hea: the signal file is"),
    "a segment that is the record": (lambda f: put(f, "r/1 12 500 500\nr 500\n"), "a segment that has segments itself"),
    "segments in a circle": (circle, "a segment that has segments itself"),
    "a segment in a parent": (lambda f: put(f, "r/1 12 500 500\n../r 500\n"), "outside the record's folder"),
    "an absolute segment": (lambda f: put(f, "r/1 12 500 500\n/etc/passwd 500\n"), "outside the record's folder"),
    "gaps only": (lambda f: put(f, "r/2 12 500 500\n~ 200\n~ 300\n"), "all segments are gaps"),
    "a gap of years": (lambda f: segments(f, "part 500", "~ 999999999999"), "missing samples"),
    "no segments": (lambda f: put(f, "r/0 12 500 500\n"), "0 segments"),
    "a million segments": (lambda f: put(f, "r/1000000 12 500 500\n"), "1000000 segments announced"),
    "fewer segments than announced": (lambda f: put(f, "r/3 12 500 500\nr1 500\n"), "3 segments announced but 1"),
    "a segment line of words": (lambda f: put(f, "r/1 12 500 500\nr1 many\n"), "segment line"),
    "a segment of another length": (lambda f: segments(f, "part 400"), "500 samples, but r.hea announces 400"),
    "an empty segment": (lambda f: segments(f, "part 500", "part 0"), "without samples"),
    "segments that hold less": (lambda f: segments(f, "part 500", samples="700"), "700 samples announced.*hold 500"),
    "a segment at another rate": (lambda f: segments(f, "part 500", fs="250"), "500 Hz, but the whole record 250 Hz"),
    "a segment with other signals": (lambda f: segments(f, "part 500", n=13), "12 signals, but r.hea announces 13"),
    "a layout with files": (lambda f: segments(f, "part 0", "part 500"), "a layout segment that names signal files"),
    "a layout alone": (layout_alone, "outside the record's folder|no signal"),
    "format 0": (lambda f: put(f, header(fmt="0")), "format 0"),
    "a link to elsewhere": (link_to_elsewhere, "a link to a file outside"),
    "a link to itself": (link_to_itself, "a link to a file outside|is missing"),
    "a pipe": (pipe, "signal file is missing"),
    "numbers run together": (lambda f: put(f, header().replace(" 16 0 0 0 0 V6", " 16 0 1-2 0 0 V6")), "whole numbers"),
    "an endless line": (lambda f: put(f, header(names=[*LEADS[:-1], "V6" * 600])), "can't be understood"),
    "MATLAB 4 of doubles": (lambda f: matlab_4(f, integers().T.astype(float)), "not a MATLAB 4 matrix of 16-bit"),
    "MATLAB 4 the other way": (lambda f: matlab_4(f, integers()), "a matrix of 500 rows"),
    "MATLAB 5 without val": (lambda f: mat_5(f, {"ecg": integers().T}), "MATLAB 5 file that.*no matrix val"),
    "MATLAB 5 of text": (lambda f: mat_5(f, {"val": "hello"}), "no real matrix of numbers"),
    "MATLAB 5 of cells": (lambda f: mat_5(f, {"val": np.array([[1, "a"]], dtype=object)}), "no real matrix"),
    "MATLAB 5 of complex numbers": (lambda f: mat_5(f, {"val": integers().T * 1j}), "no real matrix"),
    "MATLAB 5 of eleven": (lambda f: mat_5(f, {"val": integers(leads=11).T}), "a matrix of .11, 500."),
    "MATLAB 5 of a second": (lambda f: mat_5(f, {"val": integers(time=499).T}), "a matrix of .12, 499."),
    "MATLAB 5 beyond float32": (lambda f: mat_5(f, {"val": integers().T * 1e300}), "inf mV, which no heart gives"),
    "MATLAB 5 cut": (lambda f: mat_5(f, {"val": integers().T}, slice(0, 5000)), "a truncated matrix"),
    "MATLAB 5 compressed and cut": (lambda f: mat_5(f, {"val": integers().T}, slice(900), True), "MATLAB 5 file that"),
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
    assert re.search(re.escape(str(tmp_path)) + "/(r|part|round)", line)  # names the file
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
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(samples_module.tempfile, "tempdir", str(tmp_path / "temporary"))
    read_recording(put(tmp_path, header(fmt="61")), allow_missing=True)
    assert list((tmp_path / "temporary").iterdir()) == []


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


@settings(max_examples=30, deadline=None)
@given(
    time=st.integers(2, 300),
    fs=st.floats(40, 10_000).map(lambda fs: round(fs, 3)),
    gain=st.floats(1, 20_000),
    seed=st.integers(0, 2**32 - 1),
    missing=st.integers(0, 20),
    comments=st.lists(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20), max_size=3),
)
@example(time=2, fs=40.0, gain=4.0, seed=0, missing=0, comments=["#", "##x", "Age: #"])
def test_any_signal_that_fits_is_read_back_to_the_least_bit(tmp_path_factory, time, fs, gain, seed, missing, comments):
    folder = tmp_path_factory.mktemp("bits")
    rng = np.random.default_rng(seed)
    counts = rng.integers(-32767, 32768, size=(12, time))
    written = Recording("bits", (counts / gain).astype(np.float32), fs, comments=tuple(comments))
    counts = np.rint(written.signal.astype(np.float64) * gain)  # float32 may lie half a step beside
    assume(np.abs(counts).max() <= 32767)
    assume(np.abs(written.signal).max() < 10_000)
    gaps = rng.integers(0, 12, missing), rng.integers(0, time, missing)
    written.signal[gaps] = np.nan
    assume(not np.isnan(written.signal).all(axis=1).any())
    path = write_recording(written, folder, adc_gain=gain)
    theirs = wfdb.rdrecord(str(path), physical=False)
    expected = counts.T.copy()
    expected[gaps[1], gaps[0]] = -32768
    assert np.array_equal(theirs.d_signal, expected)
    assert theirs.init_value == expected[0].tolist()
    assert [value % 65536 for value in theirs.checksum] == (expected.astype(np.int64).sum(axis=0) % 65536).tolist()
    assert (theirs.fs, theirs.adc_gain, theirs.sig_len) == (fs, [gain] * 12, time)
    found = read_recording(path, allow_missing=True)
    assert np.array_equal(
        found.signal, np.where(expected == -32768, np.nan, expected / gain).T.astype("f4"), equal_nan=True
    )
    assert found.comments == tuple(line for text in comments if (line := " ".join(text.split())))
    shutil.rmtree(folder)


def test_a_recording_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    first = write_recording(some_recording(), tmp_path)
    before = read_recording(first).signal

    def fail(*arguments, **fields):
        (Path(fields["write_dir"]) / "some-1.dat").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(wfdb, "wrsamp", fail)
    with pytest.raises(OSError, match="no space"):
        write_recording(some_recording(seed=1), tmp_path)
    assert np.array_equal(read_recording(first).signal, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some-1.dat", "some-1.hea"]


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

REAL = {
    "ludb/ludb_1_50_wfdb.tar.xz": 50,
    "ptbxl/raw_500hz_wfdb.tar.xz": 479,
    "challenge/challenge_wfdb_mat.tar.xz": 180,
    "code15/code15_wfdb.tar.xz": 30,
}


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("archive", REAL)
def test_every_real_record_is_what_wfdb_reads_rounded_to_float32(tmp_path, archive, monkeypatch):
    root = os.environ.get("ECGCHAT_REAL_DATA")
    if not root:
        pytest.skip("ECGCHAT_REAL_DATA isn't set: real records not checked")
    monkeypatch.setattr(samples_module, "_read_with_wfdb", None)  # all go the plain way
    with tarfile.open(Path(root) / archive) as tar:
        tar.extractall(tmp_path, filter="data")
    paths = sorted(tmp_path.rglob("*.hea"))
    assert len(paths) == REAL[archive]
    for path in paths:
        signal, fields = wfdb.rdsamp(str(path.with_suffix("")))
        found = read_recording(path)
        rows = [[canonical_lead(name) for name in fields["sig_name"]].index(lead) for lead in LEADS]
        assert np.array_equal(found.signal, signal.T[rows].astype(np.float32)), path.name
        assert found.fs == fields["fs"]
        assert found.patient.age is None or 0 <= found.patient.age <= 120
