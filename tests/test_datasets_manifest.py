"""The manifest's rules, the split by patient, and the loaders that fill it."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.datasets.cards import card_text, read_card, read_cards
from ecgchat_lib.datasets.cpsc2018 import load_cpsc2018, load_real_sample, statements_from_snomed
from ecgchat_lib.datasets.loaders import LOADERS
from ecgchat_lib.datasets.manifest import (
    COLUMNS,
    SPLITS,
    check_manifest,
    indicator_matrix,
    make_manifest,
    split_by_patient,
)
from ecgchat_lib.datasets.ptbxl import load_ptbxl, parse_scp_codes, split_of_fold
from ecgchat_lib.datasets.signals import load_recording, load_signals
from ecgchat_lib.datasets.sources import source_names
from ecgchat_lib.datasets.synthetic import write_synthetic
from ecgchat_lib.errors import EcgChatError, MissingPartError, RecordError

REAL = os.environ.get("ECGCHAT_REAL_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="ECGCHAT_REAL_DATA is not set: no real recordings to read")


def rows(**changes):
    row = {
        "record": "a",
        "path": "x/a",
        "patient": "1",
        "split": "train",
        "report": "Sinus rhythm.",
        "statements": (("NORM", 100.0), ("SR", 0.0)),
        "language": "en",
    }
    return [row | changes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder, 30, seed=5)
    return folder


def test_make_manifest_derives_labels_and_orders_columns():
    manifest = make_manifest([{"age": 3.0, **rows()[0]}])
    assert list(manifest.columns) == [*COLUMNS, "age"]
    assert manifest["labels"].iloc[0] == ("NORM",)


def test_an_empty_manifest_is_one():
    assert len(make_manifest([])) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record": ""}, "record .*column 'record'.*not empty"),
        ({"record": 7}, "column 'record': found 7"),
        ({"patient": ""}, "column 'patient'"),
        ({"report": None}, "column 'report'.*a text"),
        ({"split": "dev"}, "'dev', expected train or validation or test"),
        ({"statements": [("NORM", 100.0)]}, "expected a tuple"),
        ({"statements": (("LBBB", 100.0),)}, "SCP code"),
        ({"statements": (("NORM", 101.0),)}, "likelihood 0 to 100"),
        ({"statements": ("NORM",)}, "likelihood 0 to 100"),
        ({"labels": ["NORM"]}, "column 'labels'"),
        ({"labels": ("AF",)}, "column 'labels'"),
    ],
)
def test_wrong_cells_are_named(changes, message):
    row = rows()[0] | {"labels": ()} | changes
    with pytest.raises(EcgChatError, match=message):
        check_manifest(pd.DataFrame([row]))


def test_missing_columns_and_double_records_are_named():
    with pytest.raises(EcgChatError, match=r"columns \['split'\] are missing"):
        check_manifest(make_manifest(rows()).drop(columns="split"))
    with pytest.raises(EcgChatError, match="same name twice"):
        make_manifest(rows() * 2)


def test_a_patient_on_two_sides_is_named():
    both = [rows()[0], rows()[0] | {"record": "b", "split": "test"}]
    with pytest.raises(EcgChatError, match=r"patient 1: on 2 sides of the split .a in train, b in test"):
        make_manifest(both)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=200), st.integers(0, 1000))
def test_split_by_patient_property(numbers, seed):
    patients = [str(number) for number in numbers]
    split = split_by_patient(patients, seed=seed)
    side = {}
    assert all(side.setdefault(patient, one) == one for patient, one in zip(patients, split, strict=True))
    assert set(split) <= set(SPLITS)
    assert split_by_patient(patients[::-1], seed=seed) == split[::-1]


def test_split_by_patient_keeps_the_fractions():
    split = split_by_patient([str(k) for k in range(1000)], fractions=(0.7, 0.2, 0.1), seed=1)
    assert [split.count(name) for name in SPLITS] == [700, 200, 100]
    with pytest.raises(EcgChatError, match="add up to 1"):
        split_by_patient(["a"], fractions=(0.5, 0.2, 0.2))


def test_indicator_matrix():
    manifest = make_manifest([rows()[0], rows()[0] | {"record": "b", "statements": (("IMI", 50.0), ("LVH", 15.0))}])
    assert indicator_matrix(manifest).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 1]]
    assert indicator_matrix(manifest, ("SR", "IMI"), column="statements").tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "text",
    ["", "__import__('os').system('true')", "[1]", "{'NORM': 'x'}", "{'NORM': None}", "{'NORM'", "nan", "{1: 2}"],
)
def test_scp_codes_that_are_no_dictionary(text):
    with pytest.raises(EcgChatError, match="scp_codes"):
        parse_scp_codes(text)


def test_scp_codes_keep_order_and_unknown_likelihoods():
    assert parse_scp_codes("{'SR': 0.0, 'IMI': 15.0}") == (("SR", 0.0), ("IMI", 15.0))
    with pytest.raises(EcgChatError, match="XX"):
        parse_scp_codes("{'XX': 1.0}")


def test_folds():
    assert [split_of_fold(fold) for fold in range(1, 11)] == ["train"] * 8 + ["validation", "test"]
    with pytest.raises(EcgChatError, match="fold 11"):
        split_of_fold(11)


def test_load_ptbxl_errors_name_the_remedy(tmp_path, folder):
    with pytest.raises(MissingPartError, match="write_synthetic"):
        load_ptbxl(tmp_path)
    table = pd.read_csv(folder / "ptbxl_database.csv")
    table.to_csv(tmp_path / "ptbxl_database.csv", index=False)
    with pytest.raises(MissingPartError, match="records500"):
        load_ptbxl(tmp_path)
    assert len(load_ptbxl(tmp_path, require_files=False)) == len(table)
    table.drop(columns="scp_codes").to_csv(tmp_path / "ptbxl_database.csv", index=False)
    with pytest.raises(EcgChatError, match="scp_codes"):
        load_ptbxl(tmp_path)


def test_load_ptbxl_keeps_unknowns_unknown(tmp_path, folder):
    table = pd.read_csv(folder / "ptbxl_database.csv").head(4)
    table.loc[0, ["age", "patient_id"]] = np.nan
    table.loc[1, "age"] = 300
    table["report"] = table["report"].astype(object)
    table.loc[2, "report"] = np.nan
    table.to_csv(tmp_path / "ptbxl_database.csv", index=False)
    manifest = load_ptbxl(tmp_path, require_files=False)
    assert np.isnan(manifest["age"][0])
    assert manifest["patient"][0] == "record-1"
    assert manifest["age"][1] == 90
    assert manifest["report_original"][2] == ""
    assert manifest["report"][2] != ""


def test_signals_are_in_millivolts_and_in_order(folder):
    manifest = load_ptbxl(folder)
    ecg = load_signals(manifest[:3], fs=500, seconds=10)
    assert ecg.shape == (3, 12, 5000)
    assert ecg.dtype == np.float32
    assert np.abs(ecg[:, 0] + ecg[:, 2] - ecg[:, 1]).max() < 1e-6  # Einthoven, so the leads are where they should be
    assert load_signals(manifest[:2], fs=100, seconds=4).shape == (2, 12, 400)
    assert load_signals(manifest[:0]).shape == (0, 12, 5000)
    assert load_recording(manifest, "00002").name.startswith("00002")
    with pytest.raises(KeyError, match="99"):
        load_recording(manifest, "99")


def test_real_sample_is_what_its_headers_say():
    manifest = load_real_sample()
    assert manifest["record"].tolist() == [f"A{k:04d}" for k in range(1, 11)]
    first = {"A0001": "CRBBB", "A0002": "NORM", "A0003": "AFIB", "A0005": "PVC", "A0008": "STD_"}
    for record, code in first.items():
        assert manifest.set_index("record").loc[record, "statements"][0][0] == code
    assert manifest["age"].tolist() == [74, 49, 81, 45, 53, 29, 74, 80, 81, 82]
    assert set(manifest["split"]) == {"test"}
    assert load_signals(manifest).shape == (10, 12, 5000)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (("426783006",), (("NORM", 100.0), ("SR", 0.0))),
        (("Normal",), (("NORM", 100.0), ("SR", 0.0))),
        (("164889003", "59118001"), (("AFIB", 0.0), ("CRBBB", 100.0))),
        (("I-AVB",), (("1AVB", 100.0),)),
        (("000",), ()),
        ((), ()),
    ],
)
def test_snomed_codes(codes, expected):
    assert statements_from_snomed(codes) == expected


def test_cpsc_errors(tmp_path):
    with pytest.raises(MissingPartError, match="real_sample"):
        load_cpsc2018(tmp_path / "absent")
    (tmp_path / "A0001.hea").write_text("A0001 12 500 5000\n# Age: NaN\n")
    with pytest.raises(RecordError, match="Dx"):
        load_cpsc2018(tmp_path)
    (tmp_path / "A0001.hea").write_text("A0001 12 500 5000\n#Age: NaN\n#Sex: F\n#Dx: 270492004,111\n")
    row = load_cpsc2018(tmp_path).iloc[0]
    assert np.isnan(row["age"])
    assert (row["sex"], row["snomed"]) == ("female", ("270492004", "111"))
    with pytest.raises(EcgChatError, match="split"):
        load_cpsc2018(tmp_path, split="dev")


@pytest.mark.real_data
@needs_real
def test_ptbxl_records_as_published_are_read(tmp_path):
    """Unpack a few raw records beside the real table: the loader finds exactly these, and reads them."""
    with tarfile.open(Path(REAL) / "ptbxl" / "raw_500hz_wfdb.tar.xz") as tar:
        members = []
        for member in tar:
            members.append(member)
            if sum(name.name.endswith((".hea", ".dat")) for name in members) >= 12:
                break
        tar.extractall(tmp_path, members=members, filter="data")
    (tmp_path / "ptbxl_database.csv.gz").write_bytes((Path(REAL) / "ptbxl" / "ptbxl_database.csv.gz").read_bytes())
    root = next(tmp_path.rglob("records500")).parent
    if root != tmp_path:
        (tmp_path / "ptbxl_database.csv.gz").rename(root / "ptbxl_database.csv.gz")
    manifest = load_ptbxl(root)
    complete = manifest[[Path(f"{path}.dat").is_file() for path in manifest["path"]]]
    assert 1 <= len(complete) <= 6
    ecg = load_signals(complete)
    assert np.isfinite(ecg).all()
    assert 0.1 < np.abs(ecg).max() < 20


def test_cards_state_size_license_and_source():
    cards = read_cards()
    assert {"PTB-XL", "MIMIC-IV-ECG", "CPSC2018", "SPH", "Chapman-Shaoxing-Ningbo", "synthetic"} <= set(cards["name"])
    assert cards.notna().all().all()
    sizes = cards.set_index("name")["records"]
    assert (sizes["PTB-XL"], sizes["CPSC2018"], sizes["SPH"]) == (21799, 6877, 25770)
    assert cards["records"].iloc[0] == 800035  # the largest first
    assert set(cards["loader"]) == {*LOADERS, "load_real_sample", "read_ludb"}
    assert all(isinstance(traps, list) and traps for traps in cards["traps"])
    assert set(cards["access"].str.split().str[0]) == {"open", "made", "shipped"}


def test_every_dataset_that_can_be_fetched_has_a_card():
    linked = {"mimic_iv"}  # credentialed: explained, and not used
    for name in set(source_names()) - linked:
        assert card_text(name).startswith("name ")


def test_a_card_as_people_read_it():
    text = card_text("chapman")
    assert text.startswith("name      Chapman-Shaoxing-Ningbo")
    assert "JS01052" in text
    assert "---" not in text
    for name in ("", "nothing", "s"):  # "s" begins two
        with pytest.raises(EcgChatError, match="no card"):
            card_text(name)


def test_card_errors_name_the_file(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# no head\n")
    with pytest.raises(EcgChatError, match=r"a\.md: no head"):
        read_card(path)
    path.write_text("---\nname: [x\n---\n")
    with pytest.raises(EcgChatError, match="no YAML"):
        read_card(path)
    path.write_text("---\nname: x\n---\n")
    with pytest.raises(EcgChatError, match="records"):
        read_card(path)
