"""SNOMED CT and AHA codes: the tables agree with PTB-XL's own, and cover what real headers hold."""

import csv
import io
import lzma
import os
import re
import tarfile
from pathlib import Path

import pytest

from ecgchat_lib.datasets.aha import AHA_CODES, read_aha_cell
from ecgchat_lib.datasets.cpsc2018 import ABBREVIATIONS, CLASS_CODES
from ecgchat_lib.datasets.labels import LABEL_SETS, SUPERCLASSES, read_merl_names
from ecgchat_lib.datasets.snomed import (
    CHAPMAN,
    CONCEPTS,
    labels_of_codes,
    read_header_facts,
    report_of_codes,
    split_codes,
    statements_of_codes,
    unknown_codes,
)
from ecgchat_lib.errors import EcgChatError, RecordError
from ecgchat_lib.paths import data_folder

REAL = os.environ.get("ECGCHAT_REAL_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="ECGCHAT_REAL_DATA is not set: no real headers to compare with")


def test_every_concept_has_a_name_and_says_what_it_maps_to():
    assert len(CONCEPTS) > 130
    for concept in CONCEPTS.values():
        assert re.fullmatch(r"\d{6,18}", concept.code)
        assert concept.name == concept.name.strip() != ""
        assert concept.superclass is None or not concept.statements  # the class stands only where no statement gives it
    assert CONCEPTS["164889003"].statements == (("AFIB", 0.0),)


def test_chapmans_af_is_flutter_and_cpscs_is_fibrillation():
    assert statements_of_codes((CHAPMAN["AF"],)) == (("AFLT", 0.0),)
    assert statements_of_codes((CHAPMAN["AFIB"],)) == (("AFIB", 0.0),)
    assert statements_of_codes((ABBREVIATIONS["AF"],)) == (("AFIB", 0.0),)
    assert statements_of_codes((CHAPMAN["STE"],)) != statements_of_codes((ABBREVIATIONS["STE"],))


def test_codes_without_a_statement_keep_their_name_and_class():
    codes = ("164865005", "39732003", "426783006", "999")
    assert statements_of_codes(codes) == (("SR", 0.0),)
    assert labels_of_codes(codes) == ("MI",)
    report = report_of_codes(codes, seed=1)
    assert "Myocardial infarction." in report
    assert "Left axis deviation." in report
    assert "sinus" in report.lower()
    assert unknown_codes(codes) == ("999",)
    assert report_of_codes(()) == "No statement was made."


def test_cpsc_classes_and_merl_names_are_spelled_out():
    assert set(CLASS_CODES) == set(LABEL_SETS["cpsc2018"].classes)
    assert set(ABBREVIATIONS.values()) == set(CLASS_CODES.values())
    for name, labels in LABEL_SETS.items():
        assert sorted(read_merl_names(name).values()) == sorted(labels.classes)


def test_aha_table_agrees_with_ptbxls_own():
    """PTB-XL's scp_statements.csv names an AHA code for some statements: each must come back from that code."""
    with (data_folder() / "labels" / "scp_statements.csv").open(encoding="utf-8") as lines:
        pairs = [(row[""], row["AHA code"]) for row in csv.DictReader(lines) if row["AHA code"]]
    assert len(pairs) > 30
    suffix = {"366": "147+366", "367": "147+367"}  # modifiers of the T wave in the AHA's own list
    for statement, code in pairs:
        assert statement in dict(read_aha_cell(suffix.get(code, code)).statements), (statement, code)


# The 44 primary statements of SPH (Liu et al. 2022).
SPH_CODES = (
    "1 21 22 23 30 31 36 37 50 51 54 60 80 81 82 83 84 85 86 87 88 101 102 104 105 106 108 120 121 125 140 142 143 145 "
    "146 147 148 152 153 155 160 161 165 166"
)


def test_all_of_sphs_codes_are_known():
    codes = SPH_CODES.split()
    assert len(codes) == 44
    assert all(AHA_CODES[code].kind == "primary" for code in codes)
    assert all(read_aha_cell(code).report.endswith(".") for code in codes)


@pytest.mark.parametrize(
    ("cell", "statements", "labels", "report"),
    [
        ("1", {"NORM": 100, "SR": 0}, ("NORM",), "Normal ECG."),
        ("22;23", {"SBRAD": 0, "SARRH": 0}, (), "Sinus bradycardia. Sinus arrhythmia."),
        ("50+346", {"AFIB": 0}, (), "Atrial fibrillation with a rapid ventricular response."),
        ("145+362", {"STD_": 0}, (), "ST depression."),
        ("147+367;22", {"INVT": 0, "SBRAD": 0}, (), "Inverted T waves. Sinus bradycardia."),
        ("60+341", {"PVC": 100, "BIGU": 0}, (), "Ventricular premature complexes in a bigeminal pattern."),
        ("30+310", {"PAC": 0}, (), "Frequent atrial premature complexes."),
        ("165+332", {"ASMI": 100}, ("MI",), "Old anteroseptal myocardial infarction."),
        ("142+312", {"LVH": 50}, ("HYP",), "Possible left ventricular hypertrophy."),
        ("50+315", {"AFIB": 80}, (), "Probable atrial fibrillation."),
        ("173", {}, ("MI",), "Myocardial infarction in the presence of left bundle branch block."),
        ("147+226", {"TAB_": 0, "ISC_": 50}, ("STTC",), "T wave abnormality, consider ischemia."),
        (" 22 ; 23 ;", {"SBRAD": 0, "SARRH": 0}, (), "Sinus bradycardia. Sinus arrhythmia."),
        ("121", {}, (), "Left axis deviation."),
    ],
)
def test_aha_cells(cell, statements, labels, report):
    reading = read_aha_cell(cell)
    assert (dict(reading.statements), reading.labels, reading.report) == (statements, labels, report)


@pytest.mark.parametrize(
    "cell", ["", "x", "22,23", "22++23", "9999", "7", "346", "346+50", "22;", "22;;23", "-1", "22\x00"]
)
def test_aha_cells_that_are_none(cell):
    if cell == "22;":
        assert read_aha_cell(cell).codes == (("22",),)
        return
    with pytest.raises(EcgChatError, match="AHA_Code"):
        read_aha_cell(cell)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("426783006", ("426783006",)),
        ("284470004,89792004,427084000,,427172004", ("284470004", "89792004", "427084000", "427172004")),
        (" 1 , 1 ", ("1",)),
        ("Unknown", ()),
        ("", ()),
    ],
)
def test_dx_lines(text, codes):
    assert split_codes(text, Path("x.hea")) == codes


@pytest.mark.parametrize("text", ["426783006;59118001", "<script>", "a" * 30, "../../x"])
def test_dx_lines_that_are_none(text):
    with pytest.raises(RecordError, match="no code"):
        split_codes(text, Path("x.hea"))


def test_headers_as_untrusted_text(tmp_path):
    path = tmp_path / "A0001.hea"
    cases = {
        "": "record line",
        "A0001 12 500\n#Dx: 1\n": "record line",
        "JS01052 12 500 500000/mV 16 0 15 31255 0 I\n#Dx: 1\n": "record line",
        "A0001 3 500 5000\n#Dx: 1\n": "record line",
        "A0001 12 500 5000\n#Age: 1\n": "Dx",
    }
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            read_header_facts(path)
    path.write_bytes(b"A0001 12 500 5000\n#Dx: 1\n" + b"#" * 200_000)
    with pytest.raises(RecordError, match="longer"):
        read_header_facts(path)
    with pytest.raises(RecordError, match="can't be read"):
        read_header_facts(tmp_path / "absent.hea")
    path.write_bytes(
        b"# first\nE07835.mat 12 500 5000 05-May-2020 09:49:17\n#Age: 71\n#SEX: Female\n# Dx : 270492004\n\xff"
    )
    facts = read_header_facts(path)
    assert (facts.name, facts.codes, facts.comments["age"]) == ("E07835", ("270492004",), "71")


@pytest.mark.real_data
@needs_real
def test_every_code_of_the_real_challenge_headers_is_known():
    with (Path(REAL) / "challenge" / "labels.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 180
    for row in rows:
        codes = tuple(ABBREVIATIONS.get(code, code) for code in split_codes(row["dx"], Path(row["path"])))
        assert unknown_codes(codes) == (), row
        if row["dataset"] != "PTB":
            assert report_of_codes(codes) != "No statement was made.", row
    mapped = [statements_of_codes(tuple(ABBREVIATIONS.get(c, c) for c in row["dx"].split(","))) for row in rows]
    assert sum(bool(found) for found in mapped) >= 165  # the others are unlocalized infarctions, axes, tachycardias


@pytest.mark.real_data
@needs_real
def test_every_acronym_of_merls_chapman_lists_is_known():
    with lzma.open(Path(REAL) / "ptbxl" / "merl_splits_csv.tar.xz") as packed, tarfile.open(fileobj=packed) as tar:
        content = tar.extractfile("data_split/chapman/chapman_test.csv").read().decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert {acronym for row in rows for acronym in row["diagnose"].split(",")} <= set(CHAPMAN)
    assert set(list(rows[0])[3:]) <= set(CHAPMAN)


@pytest.mark.real_data
@needs_real
def test_every_code_of_the_real_sph_table_is_known():
    with (Path(REAL) / "sph" / "metadata_10.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        reading = read_aha_cell(row["AHA_Code"])
        theirs = dict(statements_of_codes(tuple(row["SNOMEDCTCode"].split(","))))
        assert set(theirs) <= set(dict(reading.statements)), row
        assert set(reading.labels) <= set(SUPERCLASSES)
