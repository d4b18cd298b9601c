"""Statements, superclasses, report texts and their cleaning."""

import collections
import csv
import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.datasets.labels import (
    KINDS,
    STATEMENTS,
    SUPERCLASSES,
    codes_of_kind,
    read_statements,
    superclasses,
)
from ecgchat_lib.datasets.ptbxl import load_ptbxl
from ecgchat_lib.datasets.reports import ABBREVIATIONS, PHRASES, clean_report, report_from_statements
from ecgchat_lib.errors import EcgChatError

REAL = os.environ.get("ECGCHAT_REAL_DATA")
needs_real = pytest.mark.skipif(
    not REAL, reason="ECGCHAT_REAL_DATA is not set: no real PTB-XL metadata to compare with"
)


def test_statement_table_has_ptbxl_counts():
    assert len(STATEMENTS) == 71
    assert {kind: len(codes_of_kind(kind)) for kind in KINDS} == {"diagnostic": 44, "form": 19, "rhythm": 12}
    assert {s.superclass for s in STATEMENTS.values() if "diagnostic" in s.kinds} == set(SUPERCLASSES)
    assert all((s.superclass is not None) == ("diagnostic" in s.kinds) for s in STATEMENTS.values())


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (["NORM", "SR"], ("NORM",)),
        (["SR"], ()),
        ([], ()),
        (["LVH", "IMI", "SR"], ("MI", "HYP")),
        (["1AVB", "CLBBB"], ("CD",)),
        ({"NDT": 100.0, "AFIB": 0.0}, ("STTC",)),
    ],
)
def test_superclasses(codes, expected):
    assert superclasses(codes) == expected


def test_unknown_code_names_near_ones():
    with pytest.raises(EcgChatError, match=r"LBBB.*CLBBB"):
        superclasses(["LBBB"])
    with pytest.raises(EcgChatError, match="unknown kind"):
        codes_of_kind("diagnosis")


def test_broken_statement_tables_are_named(tmp_path):
    with pytest.raises(EcgChatError, match="no such file"):
        read_statements(tmp_path / "absent.csv")
    (tmp_path / "a.csv").write_text(",description\nNORM,normal\n")
    with pytest.raises(EcgChatError, match=r"columns .*diagnostic"):
        read_statements(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nX,x,1.0,,,NOPE,\n"
    )
    with pytest.raises(EcgChatError, match="NOPE"):
        read_statements(tmp_path / "b.csv")


def test_every_statement_can_be_said_and_reads_well():
    assert set(PHRASES) == set(STATEMENTS)
    for code, ways in PHRASES.items():
        assert ways
        assert len(set(ways)) == len(ways)
        assert all(way == way.strip() and not way.endswith(".") for way in ways), code


def test_report_is_deterministic_varied_and_hedged():
    statements = (("IMI", 35.0), ("SR", 0.0))
    texts = {report_from_statements(statements, seed=seed) for seed in range(40)}
    assert len(texts) > 8
    assert report_from_statements(statements, seed=3) == report_from_statements(statements, seed=3)
    hedges = ("possible", "cannot rule out")
    assert all(any(hedge in text.lower() for hedge in hedges) for text in texts)
    sure = {report_from_statements((("IMI", 100.0),), seed=seed) for seed in range(40)}
    assert not any(hedge in text.lower() for text in sure for hedge in (*hedges, "probable"))


def test_report_mentions_the_rate_with_the_rhythm_only():
    text = report_from_statements((("AFIB", 0.0), ("LVH", 100.0)), heart_rate_bpm=103.6, seed=1)
    assert text.count("104") == 1
    assert "104" in text.split(".")[0]
    assert "104" not in report_from_statements((("LVH", 100.0),), heart_rate_bpm=103.6)


def test_report_of_nothing_and_of_unknown_code():
    assert report_from_statements(()) == "No statement was made."
    with pytest.raises(EcgChatError):
        report_from_statements((("XYZ", 0.0),))


codes = st.dictionaries(
    st.sampled_from(sorted(STATEMENTS)), st.sampled_from([0.0, 15.0, 50.0, 80.0, 100.0]), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(codes, st.integers(0, 10**6))
def test_report_property_each_finding_is_said_once(statements, seed):
    text = report_from_statements(statements.items(), seed=seed)
    assert text.endswith(".")
    assert "{" not in text
    assert "  " not in text
    for code in statements:
        if code != "NORM":
            assert any(way.lower() in text.lower() for way in PHRASES[code]), (code, text)
    assert all(sentence[0].isupper() for sentence in text.split(". ") if sentence[0].isalpha())


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("minimal st changes in limb leads", "Minimal st changes in limb leads."),
        ("possible MI", "Possible myocardial infarction."),
        ("possible mi, old.", "Possible myocardial infarction, old."),
        ("LBBB", "Left bundle branch block."),
        ("lbbb  .  normal  axis", "Left bundle branch block. Normal axis."),
        ("limits of normal. milliseconds. family. dynamic", "Limits of normal. Milliseconds. Family. Dynamic."),
        ("pvcs and a pac", "Premature ventricular contractions and a premature atrial contraction."),
        ("af with rapid response", "Atrial fibrillation with rapid response."),
        ("after, left, shift", "After, left, shift."),
        ("rate 62.5 bpm", "Rate 62.5 bpm."),
        ("sinus rhythm. unconfirmed report", "Sinus rhythm."),
        ("sinusrhythmus 4.46                   unbestÄtigter bericht", "Sinusrhythmus."),
        ("inferiore ischÄmie", "Inferiore ischämie."),
        ("", ""),
        (" . , ", ""),
    ],
)
def test_clean_report_by_words(raw, clean):
    assert clean_report(raw) == clean


@pytest.mark.parametrize("short", sorted(ABBREVIATIONS))
def test_abbreviations_never_match_inside_a_word(short):
    assert clean_report(f"x{short} {short}x") == f"X{short} {short}x."
    assert ABBREVIATIONS[short].lower() in clean_report(f"old {short.upper()}").lower()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abilmnostz .,;:4Ä6LBR", max_size=60))
def test_cleaning_twice_changes_nothing_more(text):
    once = clean_report(text)
    assert clean_report(once) == once


@pytest.mark.real_data
@needs_real
def test_fold_10_counts_against_merl():
    manifest = load_ptbxl(Path(REAL) / "ptbxl", require_files=False)
    assert len(manifest) == 21837
    test = manifest[manifest["split"] == "test"]
    counts = collections.Counter(label for labels in test["labels"] for label in labels)
    labeled = test[test["labels"].map(bool)]
    # PTB-XL 1.0.1, which lies here, holds five more fold-10 records than 1.0.3, from which MERL's split was made.
    assert (len(test), len(labeled)) == (2203, 2163)
    assert counts == {"NORM": 964, "MI": 553, "STTC": 523, "CD": 498, "HYP": 263}
    merl = _merl_super_test(Path(REAL) / "ptbxl" / "merl_splits_csv.tar.xz")
    assert len(merl) == 2158
    totals = {name: sum(int(row[name]) for row in merl.values()) for name in SUPERCLASSES}
    assert totals == {"NORM": 963, "MI": 550, "STTC": 521, "CD": 496, "HYP": 262}
    ours = {int(record): set(labels) for record, labels in zip(labeled["record"], labeled["labels"], strict=True)}
    assert set(merl) < set(ours)
    for number, row in merl.items():
        assert ours[number] == {name for name in SUPERCLASSES if int(row[name])}


def _merl_super_test(path):
    with lzma.open(path) as packed, tarfile.open(fileobj=packed) as tar:
        content = tar.extractfile("data_split/ptbxl/super_class/ptbxl_super_class_test.csv").read().decode()
    return {int(row["ecg_id"]): row for row in csv.DictReader(io.StringIO(content))}


@pytest.mark.real_data
@needs_real
def test_real_metadata_is_patient_disjoint_and_fully_said():
    manifest = load_ptbxl(Path(REAL) / "ptbxl", require_files=False)
    assert manifest.groupby("patient")["split"].nunique().max() == 1
    assert (manifest["report"].str.len() > 0).all()
    assert manifest["report_original"].str.contains("sinusrhythmus").sum() > 5000
    assert set(manifest["sex"]) == {"male", "female"}
