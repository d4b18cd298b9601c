from __future__ import annotations

import builtins
import os
from pathlib import Path

import edfio
import h5py
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from ecgchat_lib.ecg import formats
from ecgchat_lib.ecg.filters import resample
from ecgchat_lib.ecg.formats import read_any
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import Patient, Recording, write_recording
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError, RecordError

TRUTH = np.random.default_rng(0).normal(0, 1, (12, 500)).round(3)
CODES = {"I": 1, "II": 2, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64, **{f"V{k}": k + 2 for k in range(1, 7)}}


def csv_text(names=LEADS, values=TRUTH, separator=",", times=None, decimal="."):
    head = [*(["time"] if times is not None else []), *names]
    rows = np.column_stack([*([times] if times is not None else []), values.T])
    lines = [separator.join(head), *(separator.join(repr(float(v)).replace(".", decimal) for v in row) for row in rows)]
    return "\n".join(lines) + "\n"


def write_edf(path, rates=(500,) * 12, names=LEADS, unit="uV", extra=()):
    signals = []
    for lead, rate, name in zip(TRUTH, rates, names, strict=True):
        values = resample(lead.astype(np.float32), 500, rate).astype(float) * (1000 if unit == "uV" else 1)
        bounds = {"physical_range": (-6000, 6000) if unit == "uV" else (-6, 6)}
        signals.append(edfio.EdfSignal(values, rate, label=name, physical_dimension=unit, **bounds))
    edfio.Edf([*signals, *extra], patient=edfio.Patient(sex="F")).write(path)


def dicom(names=LEADS, values=TRUTH, unit="uV", scheme="MDC", second_group=False):
    """A 12-lead ECG waveform object with 16-bit samples, 1 of them 1 uV."""
    group = Dataset()
    group.MultiplexGroupTimeOffset, group.WaveformOriginality = "0", "ORIGINAL"
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = len(names), values.shape[1]
    group.SamplingFrequency, group.WaveformBitsAllocated, group.WaveformSampleInterpretation = "500", 16, "SS"
    channels = []
    for name in names:
        channel, source, units = Dataset(), Dataset(), Dataset()
        source.CodeMeaning = f"Lead {name} (some)"
        source.CodingSchemeDesignator = scheme
        source.CodeValue = (
            f"2:{CODES[name]}" if scheme == "MDC" else f"5.6.3-9-{CODES[name]}" if scheme == "SCPECG" else "x"
        )
        units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", unit
        channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = Sequence([source]), Sequence([units])
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = "2", "0.5"
        channel.ChannelBaseline, channel.WaveformBitsStored = "3" if name == "V1" else "0", 16
        channels.append(channel)
    group.ChannelDefinitionSequence = Sequence(channels)
    group.WaveformPaddingValue = np.array([-32768], "<i2").tobytes()
    group.WaveformData = np.rint(values.T * 1000).astype("<i2").tobytes()
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.PatientAge, dataset.PatientSex = "061Y", "F"
    dataset.WaveformSequence = Sequence([short_group(), group] if second_group else [group])
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return dataset


def short_group():
    return dicom(names=LEADS[:3], values=TRUTH[:3, :100]).WaveformSequence[0]


def save(dataset, path):
    dataset.save_as(path, enforce_file_format=True)
    return path


# --- what is right -----------------------------------------------------------------------------------------------


def test_wfdb_goes_through_the_same_door(tmp_path):
    recording = Recording("a-1", TRUTH.astype(np.float32), 500.0, patient=Patient(5, "male"))
    path = write_recording(recording, tmp_path)
    assert np.array_equal(read_any(path).signal, TRUTH.astype(np.float32))
    assert read_any(f"{path}.dat").patient == Patient(5, "male")
    with pytest.raises(ParameterError, match="fs: a file of kind WFDB says it itself"):
        read_any(path, fs=500)


@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ",")])
def test_csv(tmp_path, separator, decimal):
    names = LEADS[::-1]
    (tmp_path / "r.csv").write_text(csv_text(names, TRUTH[::-1], separator, decimal=decimal))
    found = read_any(tmp_path / "r.csv", fs=250)
    assert found.fs == 250
    assert found.name == "r"
    assert np.array_equal(found.signal, TRUTH.astype(np.float32))
    assert found.notes == ("no unit given; taken as mV", "leads put into the standard order")


@pytest.mark.parametrize("fs", [500, 360, 128, 1000, 257.3])
def test_the_rate_of_csv_from_its_times(tmp_path, fs):
    (tmp_path / "r.csv").write_text(csv_text(times=(np.arange(500) / fs).round(4)))
    assert read_any(tmp_path / "r.csv", unit="mV").fs == pytest.approx(fs, rel=1e-3)
    text = csv_text(times=(np.arange(500) / fs * 1000).round(1)).replace("time", "Time (ms)")
    (tmp_path / "r.csv").write_text(text)
    assert read_any(tmp_path / "r.csv", unit="mV").fs == pytest.approx(fs, rel=1e-3)


def test_units_and_strangers_in_a_csv_s_first_row(tmp_path):
    names = [f"Lead {lead} (uV)" if lead != "V6" else "V6 [mV]" for lead in LEADS]
    values = np.concatenate([TRUTH[:11] * 1000, TRUTH[11:], TRUTH[:1]])
    (tmp_path / "r.csv").write_text(csv_text([*names, "RESP"], values).replace("\n", "\r\n"), encoding="utf-8-sig")
    found = read_any(tmp_path / "r.csv", fs=500)
    assert np.allclose(found.signal, TRUTH, atol=1e-6)
    assert found.notes == ("signals left out: RESP", "uV converted to mV")


@pytest.mark.parametrize("upright", [False, True])
def test_npy(tmp_path, upright):
    np.save(tmp_path / "r.npy", TRUTH[::-1].T if upright else TRUTH[::-1])
    found = read_any(tmp_path / "r.npy", fs=500, leads=LEADS[::-1], unit="mV")
    assert np.array_equal(found.signal, TRUTH.astype(np.float32))
    np.save(tmp_path / "r.npy", (TRUTH * 1000).astype("int16"))
    with pytest.raises(ParameterError, match=r"unit: r\.npy holds integers"):
        read_any(tmp_path / "r.npy", fs=500, leads=LEADS)
    assert np.allclose(read_any(tmp_path / "r.npy", fs=500, leads=LEADS, unit="uV").signal, TRUTH, atol=1.1e-3)


def test_h5_as_sph_writes_it(tmp_path):
    with h5py.File(tmp_path / "A00001.h5", "w") as file:
        file.create_dataset("ecg", data=TRUTH.astype("f2"), chunks=(3, 125), compression="gzip")
    found = read_any(tmp_path / "A00001.h5")
    assert found.fs == 500
    assert np.array_equal(found.signal, TRUTH.astype("f2").astype("f4"))
    assert "taken as SPH writes it" in found.notes[0]
    assert read_any(tmp_path / "A00001.h5", fs=400).fs == 400


def test_h5_of_another_kind_must_be_explained(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["ecg"] = TRUTH
    with pytest.raises(ParameterError, match=r"fs: r\.h5 doesn't say it"):
        read_any(tmp_path / "r.h5")
    with pytest.raises(ParameterError, match=r"leads: r\.h5 doesn't say it"):
        read_any(tmp_path / "r.h5", fs=500)
    assert np.array_equal(read_any(tmp_path / "r.h5", fs=500, leads=LEADS).signal, TRUTH.astype("f4"))


@pytest.mark.parametrize("unit", ["uV", "mV"])
def test_edf(tmp_path, unit):
    write_edf(tmp_path / "r.edf", unit=unit, names=[f"ECG {lead}" for lead in LEADS])
    found = read_any(tmp_path / "r.edf")
    assert found.fs == 500
    assert np.abs(found.signal - TRUTH).max() < 12 / 65535
    assert found.patient == Patient(None, "female")


def test_edf_with_several_rates_and_other_signals(tmp_path):
    breath = edfio.EdfSignal(np.zeros(50), 50, label="Resp", physical_range=(-1, 1))
    write_edf(tmp_path / "r.edf", rates=(500,) * 9 + (250,) * 3, extra=[breath])
    found = read_any(tmp_path / "r.edf")
    assert found.fs == 500
    assert found.signal.shape == (12, 500)
    assert "V4, V5, V6 resampled to 500 Hz, the fastest lead's rate" in found.notes
    assert "signals left out: Resp" in found.notes


def test_bdf(tmp_path):
    signals = [
        edfio.BdfSignal(lead * 1000, 500, label=name, physical_dimension="uV", physical_range=(-6000, 6000))
        for name, lead in zip(LEADS, TRUTH, strict=True)
    ]
    edfio.Bdf(signals).write(tmp_path / "r.bdf")
    assert np.abs(read_any(tmp_path / "r.bdf").signal - TRUTH).max() < 1e-5


@pytest.mark.parametrize("scheme", ["MDC", "SCPECG", "99LOCAL"])
def test_dicom(tmp_path, scheme):
    found = read_any(save(dicom(names=LEADS[::-1], values=TRUTH[::-1], scheme=scheme), tmp_path / "r.dcm"))
    expected = TRUTH.copy()
    expected[LEADS.index("V1")] += 0.003  # its baseline
    assert found.fs == 500
    assert np.allclose(found.signal, expected, atol=1e-6)
    assert found.patient == Patient(61, "female")
    assert "uV converted to mV" in found.notes


def test_dicom_of_two_groups_with_padding(tmp_path):
    values = TRUTH.copy()
    values[4, 100:120] = -32.768
    found = read_any(save(dicom(values=values, second_group=True), tmp_path / "r.dcm"), allow_missing=True)
    assert np.isnan(found.lead("aVL")[100:120]).all()
    assert np.isnan(found.signal).sum() == 20
    assert "group 2 of 2 is read" in found.notes


def test_files_without_an_extension_are_known_by_their_beginning(tmp_path):
    write_edf(tmp_path / "a.edf")
    save(dicom(), tmp_path / "b.dcm")
    np.save(tmp_path / "c.npy", TRUTH)
    for name in ("a.edf", "b.dcm", "c.npy"):
        (tmp_path / name).rename(tmp_path / name[0])
    assert read_any(tmp_path / "a").patient.sex == "female"
    assert read_any(tmp_path / "b").patient.age == 61
    assert read_any(tmp_path / "c", fs=500, leads=LEADS).fs == 500


# --- what is wrong -----------------------------------------------------------------------------------------------


def h5_with(**fields):
    def make(path):
        with h5py.File(path, "w") as file:
            file.create_dataset("ecg", **fields)

    return make


def h5_link(path):
    with h5py.File(path, "w") as file:
        file["ecg"] = h5py.ExternalLink("/etc/passwd", "ecg")


def h5_virtual(path):
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((12, 500), "f2")
        layout[:] = h5py.VirtualSource("other.h5", "ecg", (12, 500))
        file.create_virtual_dataset("ecg", layout)


def text(content):
    return lambda path: path.write_text(content)


def array(values, pickled=False):
    return lambda path: np.save(path, values, allow_pickle=pickled)


def claims_a_terabyte(path):
    np.save(path, TRUTH)
    path.write_bytes(path.read_bytes().replace(b"(12, 500), }", b"(12, 9999999999), }"))


def interrupted_edf(path):
    annotations = [edfio.EdfAnnotation(0, None, "x")]
    signals = [
        edfio.EdfSignal(lead, 500, label=name, physical_range=(-6, 6)) for name, lead in zip(LEADS, TRUTH, strict=True)
    ]
    edfio.Edf(signals, annotations=annotations, data_record_duration=0.5).write(path)
    content = path.read_bytes()
    assert b"+0.5\x14\x14" in content
    path.write_bytes(content.replace(b"+0.5\x14\x14", b"+7.5\x14\x14"))


def deflated(path):
    dataset = dicom()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    save(dataset, path)


WRONG = {
    "no file": ("r.csv", lambda path: None, "no such file"),
    "a folder": ("r.csv", lambda path: path.mkdir(), "not a plain file"),
    "a pipe": ("r.npy", os.mkfifo, "not a plain file"),
    "an empty file": ("r.edf", lambda path: path.touch(), "an empty file"),
    "a csv without names": ("r.csv", text("0.1,0.2\n0.3,0.4\n"), "no lead's name in its first row"),
    "a csv of eleven": ("r.csv", text(csv_text(LEADS[:11], TRUTH[:11])), "11 of 12 leads, without V6"),
    "a csv with one lead twice": ("r.csv", text(csv_text([*LEADS, "AVR"], np.vstack([TRUTH, TRUTH[:1]]))), "aVR twice"),
    "a csv with words": ("r.csv", text(csv_text().replace("\n", "\nx", 3)), "can't be read as csv .ValueError"),
    "a csv with short rows": ("r.csv", text(csv_text() + "1,2\n"), "missing samples"),
    "a csv with long rows": ("r.csv", text(csv_text() + "1,2" * 20 + "\n"), "can't be read as csv"),
    "a csv with a nameless column": ("r.csv", text(csv_text().replace(",V6", "")), "11 names .* but 12 columns"),
    "a csv of one row": ("r.csv", text(",".join(LEADS)), "can't be read as csv|no signal"),
    "uneven times": ("r.csv", text(csv_text(times=np.arange(500) ** 1.5)), "unevenly spaced"),
    "falling times": ("r.csv", text(csv_text(times=-np.arange(500.0))), "doesn't rise"),
    "microvolts taken for millivolts": ("r.csv", text(csv_text(values=TRUTH * 1e5)), "which no heart gives"),
    "a flat csv": ("r.csv", text(csv_text(values=TRUTH * 0)), "flat"),
    "a pickle": ("r.npy", array(np.array([[{}]], dtype=object), True), "can't be read as npy"),
    "an array that claims much": ("r.npy", claims_a_terabyte, "can't be read as npy"),
    "an array of eleven": ("r.npy", array(TRUTH[:11]), "an array of shape .11, 500."),
    "an ambiguous array": ("r.npy", array(TRUTH[:, :12]), "an array of shape .12, 12."),
    "a cube": ("r.npy", array(TRUTH.reshape(12, 5, 100)), "an array of shape"),
    "an array of words": ("r.npy", array(np.full((12, 9), "x")), "of type <U1"),
    "an array of complex numbers": ("r.npy", array(TRUTH * 1j), "of type complex128"),
    "an archive": ("r.npy", lambda path: np.savez(path.open("wb"), TRUTH), "not one array|can't be read"),
    "no h5": ("r.h5", text("hello"), "can't be read as h5"),
    "another dataset": ("r.h5", lambda path: h5py.File(path, "w").create_dataset("x", data=TRUTH), "no dataset 'ecg'"),
    "an h5 link to elsewhere": ("r.h5", h5_link, "no dataset 'ecg'"),
    "an h5 of other files": ("r.h5", h5_virtual, "kept in other files"),
    "an h5 of raw files": ("r.h5", h5_with(shape=(12, 500), dtype="f2", external=[("x", 0, 12000)]), "in other files"),
    "an h5 that claims much": ("r.h5", h5_with(shape=(12, 10**9), dtype="f2", chunks=(12, 1000)), "12000000000 values"),
    "an h5 of words": ("r.h5", h5_with(data=[["a"] * 9] * 12), "values of type object"),
    "no edf": ("r.edf", text("0       " + "x" * 1000), "can't be read as EDF"),
    "an edf of eleven": ("r.edf", lambda path: write_edf(path, names=[*LEADS[:11], "x"]), "11 of 12 leads"),
    "an edf in mmHg": ("r.edf", lambda path: write_edf(path, unit="mmHg"), "unit 'mmHg'"),
    "an interrupted edf": ("r.edf", interrupted_edf, "interrupted"),
    "no dicom": ("r.dcm", text("hello" * 100), "can't be read as DICOM"),
    "a dicom of three leads": ("r.dcm", lambda p: save(dicom(LEADS[:3], TRUTH[:3]), p), "no group of waveforms"),
    "a dicom in mmHg": ("r.dcm", lambda path: save(dicom(unit="mm[Hg]"), path), "unit 'mm.Hg.'"),
    "a deflated dicom": ("r.dcm", deflated, "deflated"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_broken_files_get_one_clear_line(tmp_path, case):
    name, make, expected = WRONG[case]
    make(tmp_path / name)
    explained = {"fs": 500, "leads": LEADS, "unit": "mV"} if name[-3:] in ("npy", ".h5") else {}
    explained = {"fs": 500} if name.endswith("csv") and "times" not in case else explained
    with pytest.raises(RecordError, match=expected) as caught:
        read_any(tmp_path / name, **explained)
    line = str(caught.value)
    assert "\n" not in line
    assert str(tmp_path / name) in line
    assert caught.value.remedy


def test_parameters_are_checked(tmp_path):
    (tmp_path / "r.csv").write_text(csv_text())
    with pytest.raises(ParameterError, match=r"fs: r\.csv has no column time"):
        read_any(tmp_path / "r.csv")
    with pytest.raises(ParameterError, match="unit 'parsec'"):
        read_any(tmp_path / "r.csv", fs=500, unit="parsec")
    with pytest.raises(ParameterError, match="fs: nan"):
        read_any(tmp_path / "r.csv", fs=float("nan"))
    (tmp_path / "r.csv").write_text(csv_text(times=np.arange(500) / 500))
    with pytest.raises(ParameterError, match="fs: 250, but the times"):
        read_any(tmp_path / "r.csv", fs=250)
    write_edf(tmp_path / "r.edf")
    with pytest.raises(ParameterError, match="unit: a file of kind EDF says it itself"):
        read_any(tmp_path / "r.edf", unit="mV")


def test_too_large_a_file_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 1000)
    (tmp_path / "r.csv").write_text(csv_text())
    with pytest.raises(RecordError, match="more than 1000"):
        read_any(tmp_path / "r.csv", fs=500)


@pytest.mark.parametrize(("package", "name"), [("edfio", "r.edf"), ("h5py", "r.h5"), ("pydicom", "r.dcm")])
def test_a_package_that_isnt_there_is_named(tmp_path, monkeypatch, package, name):
    (tmp_path / name).write_text("something")
    real = builtins.__import__

    def without(wanted, *rest):
        if wanted.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=package)
        return real(wanted, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPartError, match=rf"{package}: isn't installed. pip install 'ecgchat\[formats\]'"):
        read_any(tmp_path / name)


# --- a little fuzz of each kind; benchmarks/fuzz_reading.py has that of WFDB -------------------------------------


def sound_files(folder):
    (folder / "r.csv").write_text(csv_text(values=TRUTH[:, :60], times=np.arange(60) / 500))
    np.save(folder / "r.npy", TRUTH[:, :60])
    with h5py.File(folder / "r.h5", "w") as file:
        file.create_dataset("ecg", data=TRUTH[:, :64].astype("f2"), chunks=(3, 16), compression="gzip")
    write_edf(folder / "r.edf")
    save(dicom(values=TRUTH[:, :60]), folder / "r.dcm")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return sound_files(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("name", ["r.csv", "r.npy", "r.h5", "r.edf", "r.dcm"])
def test_mutated_files_are_read_or_refused(tmp_path, sound, name):
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    explained = {"fs": 500, "leads": LEADS} if name in ("r.npy", "r.h5") else {}
    assert read_any_or_refusal(tmp_path / name, sound[name], explained) == "read"
    for _ in range(150):
        content = bytearray(sound[name])
        for _ in range(int(rng.integers(1, 8))):
            at = int(rng.integers(min(len(content), int(rng.choice([40, 300, 3000, 10**6])))))
            content[at : at + int(rng.integers(3))] = rng.bytes(int(rng.integers(3)))
        if rng.random() < 0.1:
            content = content[: int(rng.integers(len(content)))]
        outcomes[read_any_or_refusal(tmp_path / name, bytes(content), explained)] += 1
    assert outcomes["refused"] > 10
    assert sum(outcomes.values()) == 150


def read_any_or_refusal(path: Path, content: bytes, explained: dict) -> str:
    path.write_bytes(content)
    try:
        found = read_any(path, **explained)
    except EcgChatError as error:
        line = str(error)
        return "refused" if "\n" not in line and "MemoryError" not in line else line
    assert found.signal.shape[0] == 12
    assert np.isfinite(found.signal).all()
    return "read"


@settings(max_examples=60, deadline=None)
@given(content=st.binary(min_size=1, max_size=300), suffix=st.sampled_from([".csv", ".npy", ".h5", ".edf", ".dcm", ""]))
def test_random_bytes_are_refused(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"r{suffix}"
    path.write_bytes(content)
    with pytest.raises(EcgChatError):
        read_any(path)


# --- the folder of real recordings -------------------------------------------------------------------------------


@pytest.mark.real_data
def test_sph_is_millivolts_in_the_courses_order():
    root = os.environ.get("ECGCHAT_REAL_DATA")
    if not root:
        pytest.skip("ECGCHAT_REAL_DATA isn't set: SPH not checked")
    paths = sorted((Path(root) / "sph").glob("*.h5"))
    assert len(paths) == 5
    for path in paths:
        found = read_any(path)
        i, ii, iii, avr, avl, avf = found.signal[:6].astype(float)
        for law in (i + iii - ii, avr + (i + ii) / 2, avl - (i - iii) / 2, avf - (ii + iii) / 2):
            assert np.abs(law).max() < 0.002  # float16's rounding at 1 mV is 0.0005
        assert 0.5 < np.ptp(found.signal, axis=1).max() < 6
        assert found.seconds in (10, 11, 12, 13)
