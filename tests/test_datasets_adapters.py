"""Each dataset's loader on tiny trees in the dataset's true layout, on hostile ones, and on the real files."""

import csv
import io
import lzma
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.datasets import load
from ecgchat_lib.datasets.chapman import load_chapman
from ecgchat_lib.datasets.cpsc2018 import SHOWN_AGAIN, load_cpsc2018, load_real_sample
from ecgchat_lib.datasets.labels import classes_of, read_merl_names
from ecgchat_lib.datasets.layouts import LAYOUTS, write_layout
from ecgchat_lib.datasets.loaders import LOADERS
from ecgchat_lib.datasets.manifest import (
    COLUMNS,
    SPLITS,
    check_manifest,
    join_manifests,
    manifest_from_columns,
    split_by_hash,
    split_table,
)
from ecgchat_lib.datasets.mimic_iv_ecg import MEASURED, REPORT_COLUMNS, load_mimic_iv_ecg, read_machine_reports
from ecgchat_lib.datasets.ptbxl import TWINS, load_ptbxl, without_twins
from ecgchat_lib.datasets.signals import load_signals
from ecgchat_lib.datasets.sph import load_sph, official_split
from ecgchat_lib.datasets.synthetic import write_synthetic
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError, RecordError

REAL = os.environ.get("ECGCHAT_REAL_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="ECGCHAT_REAL_DATA is not set: no real files to read")


# --- trees in the published layouts ---------------------------------------------------------------------------------


def ptbxl_tree(folder, rows=None, *, files=True):
    base = {"patient_id": 1.0, "age": 50, "sex": 0, "report": "sinusrhythmus", "scp_codes": "{'SR': 0.0}"}
    base |= {"strat_fold": 1}
    table = []
    for row in rows or [{"ecg_id": 1}, {"ecg_id": 2, "patient_id": 2.0, "strat_fold": 9, "sex": 1}]:
        number = row["ecg_id"]
        paths = {
            f"filename_{kind}": f"records{rate}/00000/{number}_{kind}" for kind, rate in (("hr", 500), ("lr", 100))
        }
        table.append(base | paths | row)
    (folder / "records500" / "00000").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(folder / "ptbxl_database.csv", index=False)
    if files:
        for row in table:
            (folder / "records500" / "00000" / f"{row['ecg_id']}_hr.hea").touch()
    return folder


def header(name, dx, *, age="60", sex="Male", first=None):
    lines = [
        first or f"{name} 12 500 5000",
        *(f"{name}.mat 16+24 1000/mv 16 0 0 0 0 {lead}" for lead in "abcdefghijkl"),
    ]
    return "\n".join([*lines, f"#Age: {age}", f"#Sex: {sex}", f"#Dx: {dx}", "#Rx: Unknown"]) + "\n"


def chapman_tree(folder, records=None):
    records = records or {
        f"JS{number:05d}": header(f"JS{number:05d}", "426177001,164934002") for number in range(1, 41)
    }
    for name, text in records.items():
        number = int(name[2:])
        place = folder / "WFDBRecords" / f"{number // 1000:02d}" / f"{number // 100:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.hea").write_text(text)
        (place / f"{name}.mat").touch()
    return folder


def sph_tree(folder, rows=None, *, files=True):
    base = {"AHA_Code": "1", "Age": 50, "Sex": "F", "N": 5000, "Date": "2020-01-01"}
    rows = rows or [{"ECG_ID": f"A{k:05d}", "Patient_ID": f"S{min(k, 36):05d}"} for k in range(1, 41)]
    (folder / "records").mkdir(parents=True, exist_ok=True)
    pd.DataFrame([base | row for row in rows]).to_csv(folder / "metadata.csv", index=False)
    if files:
        for row in rows:
            if isinstance(row["ECG_ID"], str) and row["ECG_ID"].isalnum():
                (folder / "records" / f"{row['ECG_ID']}.h5").touch()
    return folder


def mimic_tree(folder, rows=None, *, files=True):
    """Rows: subject, study, statements, further cells of machine_measurements.csv."""
    rows = rows or [(10000032 + k // 3, 40000000 + k, ["Sinus rhythm", "", "Normal ECG"], {}) for k in range(60)]
    records, machine = [], []
    for subject, study, said, cells in rows:
        path = f"files/p{str(subject)[:4]}/p{subject}/s{study}/{study}"
        time = "2180-07-23 08:44:00"
        records.append({"subject_id": subject, "study_id": study, "file_name": study, "ecg_time": time, "path": path})
        reports = dict.fromkeys(REPORT_COLUMNS, "") | {f"report_{k}": text for k, text in enumerate(said)}
        values = {"rr_interval": 659, "p_onset": 40, "p_end": 128, "qrs_onset": 170, "qrs_end": 258, "t_end": 518}
        values |= {"p_axis": 81, "qrs_axis": 77, "t_axis": 79}
        head = {"subject_id": subject, "study_id": study, "cart_id": 6848296, "ecg_time": time}
        extra = {"bandwidth": "0.005-150 Hz", "filtering": "60 Hz notch Baseline filter"}
        machine.append(head | reports | extra | values | cells)
        if files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{path}.hea").touch()
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(records).to_csv(folder / "record_list.csv", index=False)
    pd.DataFrame(machine).to_csv(folder / "machine_measurements.csv", index=False)
    return folder


def cpsc_tree(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, dx in (("A0001", "59118001"), ("A0400", "426783006"), ("A0402", "164889003,59118001")):
        (folder / f"{name}.hea").write_text(header(name, dx))
    return folder


def cpsc_original_tree(folder, *, both=True):
    head = "Recording,First_label,Second_label,Third_label\n"
    sets = {
        "training_set": "A0001,5,,\nA0043,5,2,\nA0301,8,,\nA0400,1,,\n",
        "validation_set": "A0001,5,,\nA0043,5,2,\n",
    }
    for name, text in sets.items() if both else [("validation_set", sets["validation_set"])]:
        (folder / name).mkdir(parents=True)
        (folder / name / "REFERENCE.csv").write_text(head + text)
    return folder


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    write_synthetic(root / "synthetic", 12, seed=2)
    made = {"ptbxl": ptbxl_tree, "mimic_iv_ecg": mimic_tree, "chapman": chapman_tree, "sph": sph_tree}
    made["cpsc2018"] = cpsc_tree
    for name, make in made.items():
        make(root / name)
    return root


# --- what holds for all six -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOADERS)
def test_each_dataset_gives_a_checked_manifest(trees, name):
    manifest = load(name, trees / name)
    assert list(manifest.columns)[: len(COLUMNS)] == list(COLUMNS)
    assert len(manifest) > 1
    assert len(check_manifest(manifest)) == len(manifest)
    assert set(manifest["language"]) == {"en"}
    assert (manifest["report"] != "").all()
    sides = manifest.groupby("patient")["split"].nunique()
    assert (sides == 1).all()
    assert split_table(manifest)["records"].sum() == len(manifest)
    assert manifest.equals(load(name, trees / name))  # nothing depends on chance or on the order of the folder


def test_a_manifest_of_several_datasets(trees):
    joined = join_manifests({name: load(name, trees / name) for name in LOADERS})
    assert set(joined["dataset"]) == set(LOADERS)
    assert joined["record"].is_unique
    assert (joined["record"].str.split("/").str[0] == joined["dataset"]).all()
    with pytest.raises(EcgChatError, match="at least one"):
        join_manifests({})
    with pytest.raises(EcgChatError, match="without '/'"):
        join_manifests({"a/b": joined})


def test_unknown_names_and_options_are_named(trees):
    with pytest.raises(ParameterError, match=r"ptb-xl.*ptbxl, mimic_iv_ecg"):
        load("ptb-xl", trees)
    with pytest.raises(ParameterError, match=r"unknown options \['folds'\]"):
        load("ptbxl", trees / "ptbxl", folds=10)
    with pytest.raises(MissingPartError, match=r"synthetic\.json"):
        load("synthetic", trees / "ptbxl")


@pytest.mark.parametrize("name", LOADERS)
def test_an_empty_or_absent_folder_is_a_message(tmp_path, name):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MissingPartError) as caught:
            load(name, folder)
        assert str(folder) in str(caught.value)


TABLES = {
    "ptbxl": (ptbxl_tree, "ptbxl_database.csv"),
    "sph": (sph_tree, "metadata.csv"),
    "mimic_iv_ecg": (mimic_tree, "machine_measurements.csv"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02" * 50, b"\xff\xfe garbage", b"a,b\n1,2,3,4\n5\n", b'"unclosed\n1,2', b"\n\n"]
)
def test_tables_that_are_none(tmp_path, name, content):
    make, table = TABLES[name]
    make(tmp_path / "x")
    (tmp_path / "x" / table).write_bytes(content)
    with pytest.raises(EcgChatError, match=table):
        load(name, tmp_path / "x")


def test_a_truncated_gz_table_is_named(tmp_path):
    ptbxl_tree(tmp_path)
    packed = pd.read_csv(tmp_path / "ptbxl_database.csv")
    packed.to_csv(tmp_path / "ptbxl_database.csv.gz", index=False)
    (tmp_path / "ptbxl_database.csv").unlink()
    assert len(load_ptbxl(tmp_path)) == 2
    whole = (tmp_path / "ptbxl_database.csv.gz").read_bytes()
    (tmp_path / "ptbxl_database.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EcgChatError, match=r"ptbxl_database\.csv\.gz"):
        load_ptbxl(tmp_path)


# --- PTB-XL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_hr", "report", "sex"])
def test_ptbxl_missing_columns(tmp_path, column):
    ptbxl_tree(tmp_path)
    table = pd.read_csv(tmp_path / "ptbxl_database.csv").drop(columns=column)
    table.to_csv(tmp_path / "ptbxl_database.csv", index=False)
    with pytest.raises(EcgChatError, match=column):
        load_ptbxl(tmp_path)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"filename_hr": "../../etc/passwd"}, "leaves the folder"),
        ({"filename_hr": "/etc/passwd"}, "leaves the folder"),
        ({"filename_hr": "C:\\x"}, "leaves the folder"),
        ({"filename_hr": "records500/..\\..\\x"}, "leaves the folder"),
        ({"strat_fold": 11}, "fold 11"),
        ({"strat_fold": "x"}, "ecg_id 1: fold x"),
        ({"scp_codes": "{'SR': 0.0"}, "ecg_id 1, scp_codes"),
        ({"scp_codes": "__import__('os')"}, "scp_codes"),
        ({"scp_codes": "{'SR': 1e999}"}, "likelihood"),
        ({"scp_codes": "(" * 3000}, "scp_codes"),
        ({"ecg_id": -1}, "ecg_id"),
        ({"ecg_id": "x"}, "ecg_id"),
        ({"ecg_id": 1.5}, "ecg_id"),
    ],
)
def test_ptbxl_hostile_cells(tmp_path, cells, message):
    ptbxl_tree(tmp_path, [{"ecg_id": 1}, {"ecg_id": 2}])
    table = pd.read_csv(tmp_path / "ptbxl_database.csv").astype(object)
    for name, value in cells.items():
        table.loc[0, name] = value
    table.to_csv(tmp_path / "ptbxl_database.csv", index=False)
    with pytest.raises(EcgChatError, match=message):
        load_ptbxl(tmp_path, require_files=False)
    if "path" in message or "leaves" in message:
        with pytest.raises(EcgChatError, match=message):
            load_ptbxl(tmp_path)


def test_ptbxl_doubles_and_garbage_that_can_be_unknown(tmp_path):
    ptbxl_tree(tmp_path, [{"ecg_id": 1}, {"ecg_id": 1}])
    with pytest.raises(EcgChatError, match="same name twice"):
        load_ptbxl(tmp_path)
    ptbxl_tree(tmp_path, [{"ecg_id": 1, "age": "old", "sex": 7, "patient_id": "x"}, {"ecg_id": 2, "age": 140}])
    manifest = load_ptbxl(tmp_path)
    assert manifest["age"].isna().all()
    assert manifest["sex"].tolist() == [None, "male"]
    assert manifest["patient"].tolist() == ["record-1", "1"]


def test_ptbxl_twins_share_a_patient_and_a_made_dataset_has_none(tmp_path):
    first, second = TWINS[2]
    rows = [
        {"ecg_id": first, "patient_id": 16690.0, "strat_fold": 3},
        {"ecg_id": second, "patient_id": 16723.0, "strat_fold": 1},
        {"ecg_id": 1000, "patient_id": 16690.0, "strat_fold": 3},
    ]
    ptbxl_tree(tmp_path, rows)
    manifest = load_ptbxl(tmp_path).set_index("record")
    assert manifest["patient"].to_dict() == {"00145": "16723", "00463": "16723", "01000": "16690"}
    assert manifest["twin"].to_dict() == {"00145": "00463", "00463": "00145", "01000": ""}
    assert without_twins(manifest.reset_index())["record"].tolist() == ["00463", "01000"]
    assert load_ptbxl(tmp_path, as_of="1.0.3")["record"].tolist() == ["00463", "01000"]
    with pytest.raises(EcgChatError, match="as_of"):
        load_ptbxl(tmp_path, as_of="1.0.2")
    (tmp_path / "synthetic.json").write_text("{}")
    assert (load_ptbxl(tmp_path)["twin"] == "").all()
    with pytest.raises(RecordError, match="twin"):
        without_twins(manifest.drop(columns="twin"))


# --- Chapman ----------------------------------------------------------------------------------------------------------


def test_chapman_reads_codes_age_and_sex(tmp_path):
    chapman_tree(
        tmp_path,
        {
            "JS00001": header("JS00001", "164889003,59118001,164934002", age="85", sex="Female"),
            "JS20005": header("JS20005", "284470004,89792004,427084000,,427172004", age="NaN", sex="Unknown"),
            "JS30001": header("JS30001", "164865005,39732003"),
        },
    )
    manifest = load_chapman(tmp_path).set_index("record")
    assert manifest.loc["JS00001", "statements"] == (("AFIB", 0.0), ("CRBBB", 100.0), ("TAB_", 0.0))
    assert manifest.loc["JS00001", "labels"] == ("CD",)
    assert (manifest.loc["JS00001", "age"], manifest.loc["JS00001", "sex"]) == (85, "female")
    assert np.isnan(manifest.loc["JS20005", "age"])
    assert manifest.loc["JS20005", "sex"] is None
    assert manifest.loc["JS20005", "labels"] == ("HYP",)
    assert manifest.loc["JS30001", "labels"] == ("MI",)
    assert manifest.loc["JS30001", "report"] == "Myocardial infarction. Left axis deviation."
    assert manifest.loc["JS00001", "path"].endswith("WFDBRecords/00/000/JS00001")


def test_chapman_leaves_out_its_two_broken_headers_and_no_other(tmp_path):
    merged = "JS01052 12 500 500000/mV 16 0 15 31255 0 I"  # as published: a line break is missing
    chapman_tree(tmp_path, {"JS01052": header("JS01052", "1", first=merged), "JS00002": header("JS00002", "426783006")})
    assert load_chapman(tmp_path)["record"].tolist() == ["JS00002"]
    chapman_tree(tmp_path, {"JS01052": header("JS01052", "426783006")})  # the Challenge's copy is intact
    assert load_chapman(tmp_path)["record"].tolist() == ["JS00002", "JS01052"]
    chapman_tree(tmp_path, {"JS00003": header("JS00003", "1", first=merged.replace("JS01052", "JS00003"))})
    with pytest.raises(RecordError, match="JS00003"):
        load_chapman(tmp_path)


def test_chapman_split_does_not_depend_on_what_was_downloaded(tmp_path):
    chapman_tree(tmp_path / "all")
    whole = load_chapman(tmp_path / "all").set_index("record")["split"]
    some = {name: header(name, "426783006") for name in whole.index[::3]}
    part = load_chapman(chapman_tree(tmp_path / "part", some)).set_index("record")["split"]
    assert (part == whole[part.index]).all()
    assert load_chapman(tmp_path / "all", seed=1)["split"].tolist() != whole.tolist()


def test_chapman_partial_downloads_and_doubles(tmp_path):
    chapman_tree(tmp_path, {"JS00001": header("JS00001", "1"), "JS00002": header("JS00002", "1")})
    next(tmp_path.rglob("JS00002.mat")).unlink()
    assert load_chapman(tmp_path)["record"].tolist() == ["JS00001"]
    assert len(load_chapman(tmp_path, require_files=False)) == 2
    other = tmp_path / "WFDBRecords" / "99"
    other.mkdir()
    for suffix in (".hea", ".mat"):
        (other / f"JS00001{suffix}").write_bytes(next(tmp_path.rglob(f"JS00001{suffix}")).read_bytes())
    with pytest.raises(RecordError, match="same record"):
        load_chapman(tmp_path)


# --- SPH --------------------------------------------------------------------------------------------------------------


def test_sph_reads_codes_with_modifiers(tmp_path):
    rows = [
        {"ECG_ID": "A00001", "Patient_ID": "S00001", "AHA_Code": "22;23", "Age": 55, "Sex": "M"},
        {"ECG_ID": "A00002", "Patient_ID": "S00002", "AHA_Code": "50+346", "Age": "x"},
        {"ECG_ID": "A00003.h5", "Patient_ID": "S00003", "AHA_Code": "165+332;146", "N": -1},
    ]
    sph_tree(tmp_path, rows)
    (tmp_path / "records" / "A00003.h5").touch()
    manifest = load_sph(tmp_path).set_index("record")
    assert manifest.loc["A00001", "statements"] == (("SBRAD", 0.0), ("SARRH", 0.0))
    assert manifest.loc["A00002", "report"] == "Atrial fibrillation with a rapid ventricular response."
    assert manifest.loc["A00003", "labels"] == ("MI", "STTC")
    assert manifest.loc["A00001", "path"].endswith("records/A00001.h5")
    assert np.isnan(manifest.loc["A00002", "age"])
    assert np.isnan(manifest.loc["A00003", "samples"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ECG_ID": "../../A1", "Patient_ID": "S1"}, "no record and patient"),
        ({"ECG_ID": "A1", "Patient_ID": ""}, "no record and patient"),
        ({"ECG_ID": "", "Patient_ID": "S1"}, "no record and patient"),
        ({"ECG_ID": "A1", "Patient_ID": "S1", "AHA_Code": "sinus"}, "A1, AHA_Code"),
        ({"ECG_ID": "A1", "Patient_ID": "S1", "AHA_Code": ""}, "A1, AHA_Code"),
    ],
)
def test_sph_hostile_cells(tmp_path, row, message):
    sph_tree(tmp_path, [row, {"ECG_ID": "A00002", "Patient_ID": "S00002"}])
    with pytest.raises(EcgChatError, match=message):
        load_sph(tmp_path, require_files=False)


def test_sph_doubles_missing_files_and_shares(tmp_path):
    sph_tree(tmp_path, [{"ECG_ID": "A1", "Patient_ID": "S1"}, {"ECG_ID": "A1", "Patient_ID": "S1"}])
    with pytest.raises(EcgChatError, match="same name twice"):
        load_sph(tmp_path)
    sph_tree(tmp_path / "b", files=False)
    with pytest.raises(MissingPartError, match=r"records\.tar\.gz"):
        load_sph(tmp_path / "b")
    with pytest.raises(EcgChatError, match="validation 1"):
        load_sph(tmp_path / "b", validation=1)
    assert "validation" not in set(load_sph(tmp_path / "b", validation=0.0, require_files=False)["split"])


def published_size(records=25770, patients=24666):
    """As many rows and patients as SPH's table has; which patients come back is made up."""
    rng = np.random.default_rng(5)
    names = [f"S{k:05d}" for k in range(patients)]
    again = rng.choice(names[:900], records - patients)
    return list(rng.permutation(np.array([*names, *again])))


def test_sph_official_split_has_the_published_size_and_is_pandas_draw():
    patients = published_size()
    splits = official_split(patients)
    assert (splits.count("train"), splits.count("test")) == (20616, 5154)
    frame = pd.DataFrame({"patient": patients})
    repeated = frame["patient"].duplicated(keep=False)
    drawn = frame[~repeated].sample(5154 - int(repeated.sum()), random_state=73).index
    assert {k for k, one in enumerate(splits) if one == "test"} == set(drawn) | set(frame.index[repeated])
    side = pd.DataFrame({"patient": patients, "split": splits}).groupby("patient")["split"].nunique()
    assert side.max() == 1


def test_sph_official_split_is_frozen():
    """What a draw from a small table gives: a change of the generator would show here."""
    splits = official_split([f"S{k}" for k in range(30)])
    assert [k for k, one in enumerate(splits) if one == "test"] == [0, 12, 20, 24, 25, 28]


# --- MIMIC-IV-ECG -----------------------------------------------------------------------------------------------------


def test_mimic_joins_cleans_and_reads_reports(tmp_path):
    said = [
        "Sinus rhythm with PACs",
        "LBBB",
        "--- Warning: Data quality may affect interpretation ---",
        "",
        "Abnormal ECG",
    ]
    rows = [
        (10000032, 40689238, said, {"p_onset": 29999, "p_axis": 29999}),
        (10000033, 40689239, [], {"rr_interval": 0, "t_end": -5, "qrs_axis": 400}),
        (10000034, 40689240, ["Pacemaker rhythm - no further analysis"], {"qrs_end": 100}),
    ]
    manifest = load_mimic_iv_ecg(mimic_tree(tmp_path, rows)).set_index("record")
    first, second, third = (manifest.loc[name] for name in ("40689238", "40689239", "40689240"))
    assert first["report"] == (
        "Sinus rhythm with premature atrial contractions. Left bundle branch block. Abnormal ECG."
    )
    assert first["statements"] == (("SR", 0.0), ("PAC", 0.0), ("CLBBB", 100.0))
    assert first["remarks"] == "Warning: Data quality may affect interpretation."
    assert first["path"] == str(tmp_path / "files/p1000/p10000032/s40689238/40689238")
    assert np.isnan(first["p_onset"])
    assert np.isnan(first["p_axis"])
    assert np.isnan(first["machine_pr_ms"])
    assert (first["machine_qrs_ms"], first["machine_qt_ms"], first["rr_interval"]) == (88, 348, 659)
    assert second["report"] == ""
    assert second["statements"] == ()
    assert second[["rr_interval", "t_end", "qrs_axis", "machine_qt_ms"]].isna().all()
    assert third["statements"] == (("PACE", 0.0),)
    assert np.isnan(third["machine_qrs_ms"])  # the QRS would end before it begins
    assert set(MEASURED) < set(manifest.columns)


def test_mimic_uses_all_ten_last_digits_on_every_side_and_parts_no_patient(tmp_path):
    rows = [(10000000 + k // 5, 40000000 + k, ["Sinus rhythm"], {}) for k in range(4000)]
    manifest = load_mimic_iv_ecg(
        mimic_tree(tmp_path, rows, files=False), require_files=False, fractions=(0.6, 0.2, 0.2)
    )
    assert len(manifest) == 4000
    digits = manifest["record"].str[-1].groupby(manifest["split"]).nunique()
    assert digits.to_dict() == {"train": 10, "validation": 10, "test": 10}
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()
    by_study = manifest["record"].str[-1] == "0"  # the original's rule parts the patients
    assert manifest.assign(test=by_study).groupby("patient")["test"].nunique().max() == 2


def test_mimic_split_of_a_patient_is_the_same_in_a_subset(tmp_path):
    rows = [(10000000 + k, 40000000 + k, ["Sinus rhythm"], {}) for k in range(300)]
    whole = load_mimic_iv_ecg(mimic_tree(tmp_path / "a", rows, files=False), require_files=False)
    part = load_mimic_iv_ecg(mimic_tree(tmp_path / "b", rows[7::5], files=False), require_files=False)
    side = dict(zip(whole["patient"], whole["split"], strict=True))
    assert all(side[patient] == split for patient, split in zip(part["patient"], part["split"], strict=True))


def rewrite(folder, table, change):
    frame = pd.read_csv(folder / table).astype(object)
    change(frame).to_csv(folder / table, index=False)


@pytest.mark.parametrize(
    ("table", "cells", "message"),
    [
        ("record_list.csv", {"path": "../../../etc/passwd"}, "leaves the folder"),
        ("record_list.csv", {"path": "/etc/passwd"}, "leaves the folder"),
        ("record_list.csv", {"path": ""}, "leaves the folder"),
        ("record_list.csv", {"subject_id": "x"}, "subject_id"),
        ("record_list.csv", {"study_id": 1e300}, "study_id"),
        ("record_list.csv", {"study_id": 40000001}, "stands twice"),
        ("machine_measurements.csv", {"study_id": 40000001}, "stands twice"),
        ("machine_measurements.csv", {"subject_id": 99999999}, "another subject_id"),
        ("machine_measurements.csv", {"study_id": "?"}, "study_id"),
    ],
)
def test_mimic_hostile_cells(tmp_path, table, cells, message):
    mimic_tree(tmp_path)

    def change(frame):
        for name, value in cells.items():
            frame.loc[0, name] = value
        return frame

    rewrite(tmp_path, table, change)
    with pytest.raises(EcgChatError, match=message):
        load_mimic_iv_ecg(tmp_path, require_files=False)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("record_list.csv", "path"),
        ("record_list.csv", "subject_id"),
        ("machine_measurements.csv", "study_id"),
        ("machine_measurements.csv", "qrs_axis"),
    ],
)
def test_mimic_missing_columns(tmp_path, table, column):
    mimic_tree(tmp_path)
    rewrite(tmp_path, table, lambda frame: frame.drop(columns=column))
    with pytest.raises(EcgChatError, match=column):
        load_mimic_iv_ecg(tmp_path)
    mimic_tree(tmp_path)
    rewrite(tmp_path, "machine_measurements.csv", lambda frame: frame.drop(columns=list(REPORT_COLUMNS)))
    with pytest.raises(EcgChatError, match="report_0"):
        load_mimic_iv_ecg(tmp_path)


def test_mimic_partial_downloads_garbage_numbers_and_absent_rows(tmp_path):
    mimic_tree(tmp_path)
    for path in list(tmp_path.rglob("*.hea"))[10:]:
        path.unlink()
    assert len(load_mimic_iv_ecg(tmp_path)) == 10

    def garble(frame):
        frame.loc[:, "rr_interval"] = "n/a"
        return frame.iloc[5:]

    rewrite(tmp_path, "machine_measurements.csv", garble)
    manifest = load_mimic_iv_ecg(tmp_path, require_files=False)
    assert len(manifest) == 60
    assert manifest["rr_interval"].isna().all()
    assert (manifest["report"] == "").sum() == 5


def test_machine_reports_are_read_once_each():
    table = pd.DataFrame({"report_0": ["Sinus rhythm", np.nan, "Sinus rhythm"], "report_1": ["LVH", "", "LVH"]})
    reports, statements, remarks = read_machine_reports(table)
    assert reports == ["Sinus rhythm. Left ventricular hypertrophy.", "", "Sinus rhythm. Left ventricular hypertrophy."]
    assert statements[0] is statements[2]
    assert remarks == ["", "", ""]


# --- CPSC2018 ---------------------------------------------------------------------------------------------------------


def test_cpsc_original_layout_takes_each_record_once(tmp_path):
    manifest = load_cpsc2018(cpsc_original_tree(tmp_path)).set_index("record")
    assert manifest.index.tolist() == ["A0001", "A0043", "A0301", "A0400"]
    assert "training_set" in manifest.loc["A0001", "path"]
    assert manifest["shown_again"].to_dict() == {"A0001": True, "A0043": True, "A0301": False, "A0400": False}
    assert manifest.loc["A0043", "statements"] == (("CRBBB", 100.0), ("AFIB", 0.0))
    assert manifest.loc["A0400", "statements"] == (("NORM", 100.0), ("SR", 0.0))
    only = load_cpsc2018(cpsc_original_tree(tmp_path / "only", both=False))
    assert only["shown_again"].all()
    assert len(SHOWN_AGAIN) == 300


def test_cpsc_random_split_never_tests_on_training_records(tmp_path):
    for number in range(1, 400):
        (tmp_path / f"A{number:04d}.hea").write_text(header(f"A{number:04d}", "426783006"))
    manifest = load_cpsc2018(tmp_path, split="random")
    assert set(manifest["split"]) == set(SPLITS)
    assert manifest["record"].is_unique
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Recording,First_label\nA0001,10\n", "expected 1 to 9"),
        ("Recording,First_label\nA0001,0\n", "expected 1 to 9"),
        ("Recording,First_label\nA0001,\n", "expected 1 to 9"),
        ("Recording,First_label\nA0001,1.5\n", "expected 1 to 9"),
        ("Recording,First_label\nA0001,inf\n", "expected 1 to 9"),
        ("Recording,First_label\nA0001,1,2,3\n", "more cells"),
        ("Recording,First_label,Second_label\nA0001,1,x9\nA0001,5,\n", "other labels"),
        ("Recording,First_label\n../A0001,1\n", "no record's name"),
        ("Recording,First_label\n,1\n", "no record's name"),
        ("Recording\nA0001\n", "First_label"),
        ("", "REFERENCE.csv"),
    ],
)
def test_cpsc_hostile_references(tmp_path, text, message):
    (tmp_path / "REFERENCE.csv").write_text(text)
    with pytest.raises(EcgChatError, match=message):
        load_cpsc2018(tmp_path)


def test_cpsc_copies_with_other_labels_are_refused(tmp_path):
    for name, dx in (("a", "426783006"), ("b", "426783006")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "A0001.hea").write_text(header("A0001", dx))
    assert len(load_cpsc2018(tmp_path)) == 1
    (tmp_path / "b" / "A0001.hea").write_text(header("A0001", "164889003"))
    with pytest.raises(RecordError, match="other labels"):
        load_cpsc2018(tmp_path)


# --- the manifest's own -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=120), st.integers(0, 1000))
def test_split_by_hash_property(numbers, seed):
    patients = [str(number) for number in numbers]
    split = split_by_hash(patients, seed=seed)
    alone = [split_by_hash([patient], seed=seed)[0] for patient in patients]
    assert split == alone


def test_split_by_hash_meets_its_shares_and_is_frozen():
    patients = [str(k) for k in range(20000)]
    split = split_by_hash(patients, fractions=(0.7, 0.2, 0.1), seed=4)
    shares = [split.count(name) / len(split) for name in SPLITS]
    assert np.allclose(shares, (0.7, 0.2, 0.1), atol=0.01)
    frozen = split_by_hash(["10000032", "10000635", "10000980", "JS00001"], fractions=(0.4, 0.3, 0.3))
    assert frozen == ["validation", "validation", "train", "train"]
    assert split_by_hash([]) == []
    with pytest.raises(EcgChatError, match="add up to 1"):
        split_by_hash(["a"], fractions=(0.5, 0.2, 0.2))


def test_columns_that_are_not_columns():
    base = {name: ["x", "y"] for name in ("record", "path", "patient", "report")}
    base |= {"split": ["train", "test"], "language": ["en", "en"], "statements": [(("SR", 0.0),), ()]}
    assert manifest_from_columns(base)["labels"].tolist() == [(), ()]
    for name, values, message in (
        ("statements", [[("SR", 0.0)], ()], "a tuple of"),
        ("statements", [(("SR", float("nan")),), ()], "likelihood 0 to 100"),
        ("statements", [((["SR"], 0.0),), ()], "SCP code"),
        ("report", ["x", float("nan")], "a text"),
        ("record", ["x", "x"], "same name twice"),
        ("patient", ["x", "x"], "2 sides"),
    ):
        with pytest.raises(EcgChatError, match=message):
            manifest_from_columns(base | {name: values})


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("challenge")
    with tarfile.open(Path(REAL) / "challenge" / "challenge_wfdb_mat.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return next(path for path in [folder, *folder.rglob("*")] if (path / "CPSC2018").is_dir())


@pytest.mark.real_data
@needs_real
def test_real_cpsc2018_headers_agree_with_the_label_table(challenge):
    manifest = load_cpsc2018(challenge / "CPSC2018").set_index("record")
    with (Path(REAL) / "challenge" / "labels.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["dataset"] == "CPSC2018"]
    assert set(manifest.index) == {row["record"] for row in rows}
    assert (manifest["statements"].map(len) > 0).all()
    for row in rows:
        assert manifest.loc[row["record"], "age"] == float(row["age"])
        assert manifest.loc[row["record"], "sex"] == row["sex"].lower()
    assert manifest.loc["A0002", "labels"] == ("NORM",)
    assert load_real_sample()["record"].isin(manifest.index).all()


@pytest.mark.real_data
@needs_real
def test_each_loader_finds_its_own_in_a_whole_challenge_folder(challenge):
    assert len(load_cpsc2018(challenge)) == 81
    assert len(load_chapman(challenge)) == 43


@pytest.mark.real_data
@needs_real
def test_real_cpsc2018_labels_are_merls(challenge):
    """Two ways of publication, one answer: SNOMED codes and abbreviations in headers, and MERL's nine columns."""
    manifest = load_cpsc2018(challenge / "CPSC2018")
    theirs = {}
    with lzma.open(Path(REAL) / "ptbxl" / "merl_splits_csv.tar.xz") as packed, tarfile.open(fileobj=packed) as tar:
        for split in ("train", "val", "test"):
            text = tar.extractfile(f"data_split/icbeb/icbeb_{split}.csv").read().decode()
            theirs |= {row["filename"]: row for row in csv.DictReader(io.StringIO(text))}
    spelled = read_merl_names("cpsc2018")
    assert len(manifest) == 81
    for record, statements in zip(manifest["record"], manifest["statements"], strict=True):
        expected = {ours for merl, ours in spelled.items() if theirs[record][merl] == "1"}
        assert set(classes_of((code for code, _ in statements), "cpsc2018")) == expected, record


@pytest.mark.real_data
@needs_real
def test_real_chapman_headers_are_read(challenge):
    manifest = load_chapman(challenge / "Chapman-Shaoxing-Ningbo")
    assert len(manifest) == 43
    assert manifest["record"].str.fullmatch(r"JS\d{5}").all()
    assert (manifest["report"] != "No statement was made.").all()
    assert manifest["age"].notna().all()


@pytest.mark.real_data
@needs_real
def test_real_sph_table_is_read(tmp_path):
    (tmp_path / "metadata.csv").write_bytes((Path(REAL) / "sph" / "metadata_10.csv").read_bytes())
    for path in (Path(REAL) / "sph").glob("*.h5"):
        (tmp_path / path.name).symlink_to(path)
    everything = load_sph(tmp_path, require_files=False)
    assert len(everything) == 9
    manifest = load_sph(tmp_path).set_index("record")
    assert manifest.index.tolist() == ["SPH00001", "SPH00002", "SPH00003", "SPH00004"]
    assert manifest.loc["SPH00001", "report"] == "Sinus bradycardia. Sinus arrhythmia."
    pytest.importorskip("h5py")
    ecg = load_signals(load_sph(tmp_path))
    assert ecg.shape == (4, 12, 5000)
    assert 0.5 < np.abs(ecg).max() < 10  # mV
    assert np.abs(ecg[:, 0] + ecg[:, 2] - ecg[:, 1]).max() < 0.02  # Einthoven, to float16's rounding
    assert set(manifest["sex"]) == {"male"}


# --- the datasets in miniature ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_in_miniature_is_loaded(tmp_path, name):
    written = write_layout(name, tmp_path)
    assert written == write_layout(name, tmp_path)
    assert all((tmp_path / file).is_file() for file in written)
    options = {"require_files": False} if "require_files" in LOADERS[name].__kwdefaults__ else {}
    manifest = load(name, tmp_path, **options)
    assert len(manifest) >= 4
    assert (manifest["report"] != "").all()


def test_an_unknown_layout_is_named(tmp_path):
    with pytest.raises(ParameterError, match="mimic_iv_ecg"):
        write_layout("ptbxl", tmp_path)


PIECES = [
    b"",
    b",",
    b"\n",
    b'"',
    b"nan",
    b"inf",
    b"-1",
    b"1e400",
    b"../../x",
    b"/etc",
    b"\x00",
    b"\xff",
    b"9" * 40,
    b"{",
    b"#Dx:",
    b";",
    b"+",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path, name):
    """Any damage to a table or header ends in a manifest or in a message."""
    write_layout(name, tmp_path)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    whole = {path: path.read_bytes() for path in files}
    rng, messages = np.random.default_rng(3), []
    options = {"require_files": False} if "require_files" in LOADERS[name].__kwdefaults__ else {}
    for _ in range(150):
        path = files[int(rng.integers(len(files)))]
        content = bytearray(whole[path])
        for _ in range(int(rng.integers(1, 4))):
            at, piece = int(rng.integers(len(content) + 1)), PIECES[int(rng.integers(len(PIECES)))]
            content[at : at + int(rng.integers(0, 9))] = piece
        path.write_bytes(bytes(content))
        try:
            load(name, tmp_path, **options)
        except EcgChatError as error:
            messages.append(str(error))
        path.write_bytes(whole[path])
    assert messages
    assert max(map(len, messages)) < 1500
