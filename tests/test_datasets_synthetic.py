"""Synthetic ECGs: the same everywhere, true to Einthoven, and true to what they say of themselves."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.datasets.labels import SUPERCLASSES
from ecgchat_lib.datasets.ptbxl import load_ptbxl
from ecgchat_lib.datasets.synthetic import (
    DATABASE_COLUMNS,
    FINDINGS,
    read_truth,
    synthesize,
    write_synthetic,
)
from ecgchat_lib.errors import EcgChatError, ParameterError

SINUS = ("SR", "SBRAD", "STACH")


def units(ecg):
    return np.round(ecg.signal.astype(np.float64) * 1000).astype(np.int64)


def average_beat(ecg, before=0.35, after=0.6, kind="N"):
    """Mean of the beats around their R peaks, (12, time), baseline set to what lies just before the QRS."""
    left, right = round(before * ecg.fs), round(after * ecg.fs)
    pieces = [
        ecg.signal[:, peak - left : peak + right]
        for peak, one in zip(ecg.truth["r_peaks"], ecg.truth["beat_types"], strict=True)
        if one == kind and peak >= left and peak + right <= ecg.signal.shape[1]
    ]
    beat = np.mean(pieces, axis=0)
    flat = left - round(0.065 * ecg.fs)
    return beat - beat[:, flat - 5 : flat + 5].mean(axis=1, keepdims=True), left


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(FINDINGS)), st.sampled_from([100.0, 250.0, 500.0, 1000.0]))
def test_einthoven_and_goldberger_hold_exactly(seed, finding, fs):
    one, two, three, avr, avl, avf = units(synthesize(seed, finding=finding, fs=fs, seconds=4))[:6]
    assert (one + three == two).all()
    assert (avr + avl + avf == 0).all()
    assert (2 * avr == -(one + two)).all()
    assert (2 * avl == one - three).all()
    assert (2 * avf == two + three).all()


def test_same_seed_same_digits():
    first, again, other = synthesize(12), synthesize(12), synthesize(13)
    assert np.array_equal(first.signal, again.signal)
    assert first.report == again.report
    assert first.truth["r_peaks"].tolist() == again.truth["r_peaks"].tolist()
    assert not np.array_equal(first.signal, other.signal)


def test_digits_are_those_of_version_1():
    """Another digest means that published seeds give other ECGs: raise VERSION and rebuild what was made from them."""
    digest = hashlib.sha256()
    for seed, finding in enumerate(FINDINGS):
        digest.update(units(synthesize(seed, finding=finding)).astype("<i2").tobytes())
    assert digest.hexdigest()[:16] == "ee3ca5cd8a621a41"


@pytest.mark.parametrize("finding", sorted(FINDINGS))
def test_each_finding_has_its_signs(finding):
    ecgs = [synthesize(seed, finding=finding) for seed in range(12)]
    for ecg in ecgs:
        truth = ecg.truth
        assert ecg.signal.shape == (12, 5000)
        assert ecg.signal.dtype == np.float32
        assert np.abs(ecg.signal).max() < 6
        assert 18 <= ecg.age <= 89
        assert ecg.sex in ("male", "female")
        assert dict(ecg.statements).keys() >= {truth["rhythm"]}
        rhythm_rate = {"SR": (57, 106), "SBRAD": (38, 60), "STACH": (100, 135), "AFIB": (45, 150), "AFLT": (60, 165)}
        low, high = rhythm_rate[truth["rhythm"]]
        assert low <= truth["heart_rate_bpm"] <= high
        assert np.isnan(truth["pr_ms"]) == (truth["rhythm"] not in SINUS)
        assert (truth["qrs_ms"] >= 120) == (finding in ("CLBBB", "CRBBB"))
        assert not (finding != "1AVB" and truth["pr_ms"] > 200)
    signs = {
        "1AVB": all(e.truth["pr_ms"] > 200 for e in ecgs),
        "LAFB": all(-90 < e.truth["axis_deg"] < -45 for e in ecgs),
        "LNGQT": all(e.truth["qt_ms"] / np.sqrt(e.truth["rr_ms"] / 1000) > 470 for e in ecgs),
        "NORM": all(e.truth["qt_ms"] / np.sqrt(e.truth["rr_ms"] / 1000) < 465 for e in ecgs)
        and all(-30 <= e.truth["axis_deg"] <= 105 for e in ecgs),
        "PVC": all("V" in e.truth["beat_types"] for e in ecgs),
        "PAC": all("A" in e.truth["beat_types"] for e in ecgs),
        "AFIB": all(e.truth["rr_sd_ms"] > 0.08 * e.truth["rr_ms"] for e in ecgs),
        "CLBBB": all(average_beat(e)[0][6].min() < -0.6 and average_beat(e)[0][11].max() > 0.6 for e in ecgs),
        "CRBBB": all(average_beat(e)[0][6].max() > 0.25 and average_beat(e)[0][11].min() < -0.1 for e in ecgs),
        "LVH": all(average_beat(e)[0][10].max() - average_beat(e)[0][6].min() > 3.5 for e in ecgs),
        "IMI": all(average_beat(e)[0][2].min() < -0.15 for e in ecgs),
        "ASMI": all(average_beat(e)[0][7, 150:190].max() < 0.15 for e in ecgs),  # no R wave in V2
    }
    assert signs.get(finding, True)


@pytest.mark.parametrize("finding", ["NORM", "SBRAD", "STACH", "1AVB", "IMI", "LNGQT"])
def test_r_peaks_are_where_the_signal_is_steepest(finding):
    from scipy.signal import find_peaks

    for seed in range(6):
        ecg = synthesize(seed, finding=finding)
        steep = np.abs(np.diff(ecg.signal[[0, 1, 6, 7, 8, 9, 10, 11]], axis=1)).sum(axis=0)
        steep = np.convolve(steep, np.ones(31) / 31, mode="same")  # 62 ms: one hill per QRS
        found, _ = find_peaks(steep, height=0.4 * np.quantile(steep, 0.99), distance=100)
        inside = [p for p in ecg.truth["r_peaks"] if 60 < p < 4940]
        found = [p for p in found if 60 < p < 4940]
        assert len(found) == len(inside)
        assert np.abs(np.array(found) - inside).max() <= 25  # 50 ms


@pytest.mark.parametrize("finding", ["NORM", "CLBBB", "CRBBB", "LAFB", "LVH", "STACH"])
def test_axis_and_width_can_be_measured(finding):
    errors = []
    for seed in range(6):
        ecg = synthesize(seed, finding=finding)
        beat, left = average_beat(ecg)
        size = np.sqrt((np.diff(beat[[0, 1, 6, 7, 8, 9, 10, 11]], axis=1) ** 2).sum(axis=0))
        near = size[left - 60 : left + 80]
        above = np.flatnonzero(near > 0.12 * near.max())
        width = (above[-1] - above[0]) / ecg.fs * 1000
        area = beat[:, left - 60 + above[0] : left - 60 + above[-1] + 1].sum(axis=1)
        axis = np.degrees(np.arctan2(2 * area[5] / np.sqrt(3), area[0]))
        turn = (axis - ecg.truth["axis_deg"] + 180) % 360 - 180
        errors.append((abs(width - ecg.truth["qrs_ms"]), abs(turn)))
    width_error, axis_error = np.median(errors, axis=0)
    assert width_error < 20
    assert axis_error < 15


def test_premature_beats_come_early_and_ventricular_ones_pause():
    for finding, letter in (("PVC", "V"), ("PAC", "A")):
        for seed in range(8):
            truth = synthesize(seed, finding=finding, seconds=30).truth
            rr = np.diff(truth["r_peaks"])
            kinds = truth["beat_types"]
            places = [k for k in range(1, len(kinds) - 1) if kinds[k] == letter]
            assert places
            for k in places:
                assert rr[k - 1] < 0.85 * np.median(rr)
                if letter == "V":
                    assert abs(rr[k - 1] + rr[k] - 2 * np.median(rr)) < 0.15 * np.median(rr)


def test_patient_seed_keeps_the_heart():
    first = synthesize(1, finding="NORM", patient_seed=99)
    second = synthesize(2, finding="NORM", patient_seed=99)
    assert (first.age, first.sex) == (second.age, second.sex)
    assert first.truth["axis_deg"] == second.truth["axis_deg"]
    assert first.truth["r_peaks"].tolist() != second.truth["r_peaks"].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"finding": "LBBB"}, "CLBBB"),
        ({"fs": 10}, "fs"),
        ({"seconds": 1}, "seconds"),
        ({"seconds": 10**6}, "seconds"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ParameterError, match=message):
        synthesize(**({"seed": 0} | changes))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return folder, write_synthetic(folder, 80, seed=3)


def test_layout_is_ptbxls(dataset):
    folder, manifest = dataset
    table = pd.read_csv(folder / "ptbxl_database.csv")
    assert tuple(table.columns) == DATABASE_COLUMNS
    assert len(table) == len(manifest) == 80
    assert table["filename_hr"][0] == "records500/00000/00001_hr"
    header = (folder / "records500/00000/00001_hr.hea").read_text().splitlines()
    assert header[0] == "00001_hr 12 500 5000"
    assert header[4].endswith(" AVR")  # PTB-XL's own spelling; readers go by name, not by spelling
    assert (folder / "scp_statements.csv").is_file()
    assert json.loads((folder / "synthetic.json").read_text())["n"] == 80


def test_wfdb_reads_back_every_bit(dataset):
    _, manifest = dataset
    for path in manifest["path"][:5]:
        record = wfdb.rdrecord(path, physical=False)
        digital = record.d_signal.astype(np.int64)
        assert record.checksum == [int(column.sum()) & 0xFFFF for column in digital.T]
        assert record.init_value == digital[0].tolist()
        assert (digital[:, 0] + digital[:, 2] == digital[:, 1]).all()
        assert set(record.adc_gain) == {1000.0}
        assert set(record.units) == {"mV"}


def test_manifest_matches_the_truth(dataset):
    folder, manifest = dataset
    truth = read_truth(folder)
    assert truth["record"].tolist() == manifest["record"].tolist()
    for statements, rhythm, peaks, kinds in zip(
        manifest["statements"], truth["rhythm"], truth["r_peaks"], truth["beat_types"], strict=True
    ):
        assert rhythm in dict(statements)
        assert len(peaks) == len(kinds) >= 5
    assert {label for labels in manifest["labels"] for label in labels} == set(SUPERCLASSES)


def test_patients_have_several_records_and_one_fold(dataset):
    _, manifest = dataset
    sizes = manifest.groupby("patient").size()
    assert sizes.max() >= 2
    assert sizes.min() == 1
    assert manifest.groupby("patient")["fold"].nunique().max() == 1
    assert set(manifest["split"]) == {"train", "validation", "test"}


def test_writing_twice_gives_the_same_bytes_and_prefixes_agree(tmp_path):
    def content(folder):
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    write_synthetic(tmp_path / "a", 6, seed=8)
    write_synthetic(tmp_path / "b", 6, seed=8)
    write_synthetic(tmp_path / "c", 3, seed=8)
    first, again, short = content(tmp_path / "a"), content(tmp_path / "b"), content(tmp_path / "c")
    assert first == again
    assert all(first[name] == value for name, value in short.items() if name.endswith((".dat", ".hea")))


def test_real_datasets_are_left_alone(tmp_path):
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id\n")
    with pytest.raises(EcgChatError, match="another dataset"):
        write_synthetic(tmp_path, 3, seed=0)
    with pytest.raises(ParameterError, match="n 0"):
        write_synthetic(tmp_path / "new", 0, seed=0)
    with pytest.raises(EcgChatError, match="write_synthetic"):
        read_truth(tmp_path)


def test_other_rates_are_written_and_read(tmp_path):
    manifest = write_synthetic(tmp_path, 2, seed=1, fs=400)
    assert wfdb.rdheader(manifest["path"][0]).fs == 400
    assert len(load_ptbxl(tmp_path)) == 2
