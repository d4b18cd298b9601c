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
    CPSC2018_CLASSES,
    KINDS,
    LABEL_SETS,
    STATEMENTS,
    SUPERCLASSES,
    classes_of,
    codes_of_kind,
    label_matrix,
    parse_statements,
    read_merl_names,
    read_statements,
    superclasses,
)
from ecgchat_lib.datasets.manifest import split_by_patient
from ecgchat_lib.datasets.ptbxl import TWINS, WITHDRAWN, load_ptbxl, without_twins
from ecgchat_lib.datasets.reports import ABBREVIATIONS, PHRASES, clean_report, language_of, report_from_statements
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


CLEANED = [
    # abbreviations inside words stay
    ("minimal st changes in limb leads", "Minimal st changes in limb leads."),
    ("limits of normal. milliseconds. family. dynamic", "Limits of normal. Milliseconds. Family. Dynamic."),
    ("after, left, shift", "After, left, shift."),
    ("mitral and midprecordial leads", "Mitral and midprecordial leads."),
    ("bipacs stay", "Bipacs stay."),
    ("radial, gradual, ladder", "Radial, gradual, ladder."),
    ("savt and vtx", "Savt and vtx."),
    ("v1mi is no word", "V1mi is no word."),
    ("mi2 is none either", "Mi2 is none either."),
    ("pac_man", "Pac_man."),
    # whole words are written out, in any case and beside any mark
    ("possible MI", "Possible myocardial infarction."),
    ("possible mi, old.", "Possible myocardial infarction, old."),
    ("(mi)", "(myocardial infarction)."),
    ("mi/ischemia", "Myocardial infarction/ischemia."),
    ("LBBB", "Left bundle branch block."),
    ("lbbb  .  normal  axis", "Left bundle branch block. Normal axis."),
    ("Incomplete RBBB", "Incomplete right bundle branch block."),
    ("ILBBB", "Incomplete left bundle branch block."),
    ("crbbb and lafb", "Complete right bundle branch block and left anterior fascicular block."),
    ("lpfb", "Left posterior fascicular block."),
    ("pvcs and a pac", "Premature ventricular contractions and a premature atrial contraction."),
    ("PVC(s)", "Premature ventricular contraction(s)."),
    ("af with rapid response", "Atrial fibrillation with rapid response."),
    ("AF with RVR", "Atrial fibrillation with rapid ventricular response."),
    ("lvh by voltage only", "Left ventricular hypertrophy by voltage only."),
    ("1st degree AVB", "1st degree AV block."),
    ("wpw pattern", "Wolff-Parkinson-White pattern."),
    ("NSR, rate 72", "Normal sinus rhythm, rate 72."),
    ("ivcd; svt; vt", "Intraventricular conduction delay; supraventricular tachycardia; ventricular tachycardia."),
    # the same letters, another thing
    ("LAD", "Left axis deviation."),
    ("proximal LAD occlusion", "Proximal left anterior descending occlusion."),
    ("RAD and rae", "Right axis deviation and right atrial enlargement."),
    # negations are kept
    ("no LVH", "No left ventricular hypertrophy."),
    ("no evidence of mi.", "No evidence of myocardial infarction."),
    ("not an MI. without lbbb", "Not an myocardial infarction. Without left bundle branch block."),
    ("keine ischämie", "Keine ischämie."),
    ("ej inferior infarkt", "Ej inferior infarkt."),
    # hedges are kept
    ("cannot rule out septal mi", "Cannot rule out septal myocardial infarction."),
    ("probable af", "Probable atrial fibrillation."),
    ("old anteroseptal mi cannot be excluded", "Old anteroseptal myocardial infarction cannot be excluded."),
    ("borderline ecg", "Borderline ecg."),
    ("Lateral ST elevation, CONSIDER ACUTE INFARCT", "Lateral ST elevation, consider acute infarct."),
    # numbers are kept
    ("rate 62.5 bpm", "Rate 62.5 bpm."),
    ("pr interval 0.24", "Pr interval 0.24."),
    ("qtc 4.46 times", "Qtc 4.46 times."),
    ("4.46 mm in v2. axis -30", "4.46 mm in v2. Axis -30."),
    ("t waves inverted in v4,5,6", "T waves inverted in v4,5,6."),
    ("2:1 av block", "2:1 av block."),
    # German: umlauts mended, abbreviations of German reports written out, boilerplate gone
    ("sinusrhythmus 4.46                   unbestÄtigter bericht", "Sinusrhythmus."),
    ("inferiore ischÄmie", "Inferiore ischämie."),
    ("leitungsstÖrung und Übergang", "Leitungsstörung und übergang."),
    (
        "sinusrhythmus linkstyp qrs(t) abnorm    inferiorer infarkt     alter unbest. 4.46     unbestÄtigter bericht",
        "Sinusrhythmus linkstyp qrs(t) abnorm inferiorer infarkt alter unbestimmt.",
    ),
    ("sinusrhythmus vd. auf ischamie", "Sinusrhythmus Verdacht auf ischamie."),
    ("path. ekg, linkstyp", "Pathologisch ekg, linkstyp."),
    ("sinusrhythmus mit ves", "Sinusrhythmus mit ventrikuläre Extrasystolen."),
    ("sinusrhythmus minderung", "Sinusrhythmus minderung."),
    ("the vd of this study", "The vd of this study."),  # English: no Verdacht
    ("sinusrytm vÄnster kammarhypertrofi", "Sinusrytm vänster kammarhypertrofi."),
    # boilerplate of recorders and annotators
    ("sinus rhythm. unconfirmed report", "Sinus rhythm."),
    ("Sinus rhythm. Edit: NORM 100, (NORM 100)", "Sinus rhythm."),
    ("trace only requested.", ""),
    ("*** report made without knowing patient's sex ***", ""),
    ("--- Warning: noise ---", "Warning: noise."),
    ("sinus rhythm -- normal", "Sinus rhythm -- normal."),
    # marks and nothing
    ("sinus   rhythm ,normal..  axis", "Sinus rhythm,normal. Axis."),
    ("", ""),
    (" . , ", ""),
]


@pytest.mark.parametrize(("raw", "clean"), CLEANED)
def test_clean_report_by_words(raw, clean):
    assert clean_report(raw) == clean
    assert clean_report(clean) == clean


def test_the_table_is_long_enough_and_left_is_never_light():
    assert len(CLEANED) >= 60
    assert not any("light" in long for long in ABBREVIATIONS.values())
    assert ABBREVIATIONS["lbbb"] == "left bundle branch block"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("sinusrhythmus normales ekg", "de"),
        ("schrittmacher ekg", "de"),
        ("sinusbradykardie sonst normales ekg", "de"),
        ("sinus rhythm. normal ecg.", "en"),
        ("sinus tachycardia. st segments are depressed in i", "en"),
        ("sinusrytm normalt ekg", "sv"),
        ("förmaksflimmer, bör övervägas", "sv"),
        ("pacemaker ekg", "en"),
        ("ekg", ""),
        ("", ""),
    ],
)
def test_language_of(text, language):
    assert language_of(text) == language


@pytest.mark.parametrize("short", sorted(ABBREVIATIONS))
def test_abbreviations_never_match_inside_a_word(short):
    assert clean_report(f"x{short} {short}x") == f"X{short} {short}x."
    assert ABBREVIATIONS[short].lower() in clean_report(f"old {short.upper()}").lower()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abilmnostz .,;:4Ä6LBR", max_size=60))
def test_cleaning_twice_changes_nothing_more(text):
    once = clean_report(text)
    assert clean_report(once) == once


def test_label_sets_have_the_published_sizes():
    sizes = {name: len(labels.classes) for name, labels in LABEL_SETS.items()}
    assert sizes == {"super": 5, "sub": 23, "form": 19, "rhythm": 12, "cpsc2018": 9}
    for labels in LABEL_SETS.values():
        assert set(labels.names) == set(labels.classes) == set(labels.class_of.values())
        assert all(labels.names.values())


@pytest.mark.parametrize(
    ("codes", "name", "expected"),
    [
        (["IMI", "ASMI", "SR"], "sub", ("IMI", "AMI")),
        (["1AVB", "3AVB"], "sub", ("_AVB",)),
        (["LAFB", "LPFB"], "sub", ("LAFB/LPFB",)),
        (["NDT", "SR", "PVC"], "form", ("NDT", "PVC")),
        (["NORM"], "form", ()),
        ({"AFIB": 0.0, "PVC": 100.0}, "rhythm", ("AFIB",)),
        (["SR", "NORM"], "cpsc2018", ("NORM",)),
        (["STE_", "CRBBB"], "cpsc2018", ("CRBBB", "STE_")),
        ([], "super", ()),
    ],
)
def test_classes_of(codes, name, expected):
    assert classes_of(codes, name) == expected


def test_label_matrix_and_unknown_sets():
    matrix = label_matrix([(("SR", 0.0),), (("AFIB", 0.0), ("IMI", 50.0)), (), (("SR", 0.0),)], "rhythm")
    assert matrix.shape == (4, 12)
    assert matrix.sum(axis=1).tolist() == [1, 1, 0, 1]
    with pytest.raises(EcgChatError, match="super, sub, form"):
        classes_of([], "superclass")


@pytest.mark.parametrize("text", ["IMI:101", "IMI:-1", "IMI:x", "NOPE", "IMI:nan"])
def test_statement_tables_refuse_nonsense(text):
    with pytest.raises(EcgChatError):
        parse_statements(text, where="here")


def test_statement_tables_have_ptbxl_likelihoods_by_default():
    assert parse_statements("IMI SR PVC:100", where="here") == (("IMI", 100.0), ("SR", 0.0), ("PVC", 100.0))


MERL_FOLDERS = {"super": "super_class", "sub": "sub_class", "form": "form", "rhythm": "rhythm"}
MERL_SPLITS = {"train": "train", "validation": "val", "test": "test"}
MERL_COUNTS = {"super": (17084, 2146, 2158), "sub": (17084, 2146, 2158), "form": (7197, 901, 880)}
MERL_COUNTS["rhythm"] = (16832, 2100, 2098)


def _merl_table(path):
    with lzma.open(Path(REAL) / "ptbxl" / "merl_splits_csv.tar.xz") as packed, tarfile.open(fileobj=packed) as tar:
        content = tar.extractfile(f"data_split/{path}").read().decode()
    return list(csv.DictReader(io.StringIO(content)))


@pytest.fixture(scope="module")
def as_compared():
    return load_ptbxl(Path(REAL) / "ptbxl", require_files=False, as_of="1.0.3")


@pytest.mark.real_data
@needs_real
@pytest.mark.parametrize("name", MERL_FOLDERS)
@pytest.mark.parametrize("split", MERL_SPLITS)
def test_every_label_of_every_record_is_merls(as_compared, name, split):
    """Not only the counts per class: each record of each list has MERL's labels, and none is missing or too many."""
    folder = MERL_FOLDERS[name]
    rows = _merl_table(f"ptbxl/{folder}/ptbxl_{folder}_{MERL_SPLITS[split]}.csv")
    spelled = read_merl_names(name)
    theirs = {int(row["ecg_id"]): {ours for merl, ours in spelled.items() if row[merl] == "1"} for row in rows}
    here = as_compared[as_compared["split"] == split]
    ours = {
        int(record): set(found)
        for record, statements in zip(here["record"], here["statements"], strict=True)
        if (found := classes_of((code for code, _ in statements), name))
    }
    assert ours == theirs
    assert len(ours) == MERL_COUNTS[name][list(MERL_SPLITS).index(split)]


@pytest.mark.real_data
@needs_real
def test_fold_10_counts_of_both_versions(as_compared):
    older = load_ptbxl(Path(REAL) / "ptbxl", require_files=False)
    assert (len(older), len(as_compared)) == (21837, 21799)
    counts = {}
    for version, manifest in (("1.0.1", older), ("1.0.3", as_compared)):
        test = manifest[manifest["split"] == "test"]
        counts[version] = collections.Counter(label for labels in test["labels"] for label in labels)
        counts[version]["labeled"] = int(test["labels"].map(bool).sum())
    assert counts["1.0.1"] == {"NORM": 964, "MI": 553, "STTC": 523, "CD": 498, "HYP": 263, "labeled": 2163}
    assert counts["1.0.3"] == {"NORM": 963, "MI": 550, "STTC": 521, "CD": 496, "HYP": 262, "labeled": 2158}
    form = {len(m): int(label_matrix(m.loc[m["split"] == "test", "statements"], "form").any(axis=1).sum())
            for m in (older, as_compared)}  # fmt: skip
    assert form == {21837: 882, 21799: 880}


@pytest.mark.real_data
@needs_real
def test_twins_are_never_parted_and_can_be_dropped(as_compared):
    manifest = load_ptbxl(Path(REAL) / "ptbxl", require_files=False)
    twins = manifest[manifest["twin"] != ""].set_index("record")
    assert {frozenset((int(a), int(b))) for a, b in twins["twin"].items()} == {frozenset(pair) for pair in TWINS}
    for record, row in twins.iterrows():
        assert twins.loc[row["twin"], "twin"] == record
        assert twins.loc[row["twin"], "patient"] == row["patient"]
        assert twins.loc[row["twin"], "split"] == row["split"]
    split = dict(zip(manifest["record"], split_by_patient(manifest["patient"].tolist(), seed=3), strict=True))
    assert all(split[record] == split[twin] for record, twin in twins["twin"].items())
    assert len(without_twins(manifest)) == len(manifest) - len(TWINS)
    assert (as_compared["twin"] == "").all()
    assert {first for first, _ in TWINS} <= WITHDRAWN


@pytest.mark.real_data
@needs_real
def test_cpsc2018_counts_are_any_label_counts():
    """The published nine counts are of records with the label in any place, as MERL's own lists show."""
    rows = [row for split in ("train", "val", "test") for row in _merl_table(f"icbeb/icbeb_{split}.csv")]
    spelled = read_merl_names("cpsc2018")
    counts = {ours: sum(int(row[merl]) for row in rows) for merl, ours in spelled.items()}
    assert len(rows) == 6877
    assert counts == dict(zip(CPSC2018_CLASSES, (918, 1221, 722, 236, 1857, 616, 700, 869, 220), strict=True))
    assert sum(counts.values()) == 7359 > len(rows)  # 476 records have more than one label


@pytest.mark.real_data
@needs_real
def test_real_metadata_is_patient_disjoint_and_fully_said():
    manifest = load_ptbxl(Path(REAL) / "ptbxl", require_files=False)
    assert manifest.groupby("patient")["split"].nunique().max() == 1
    assert (manifest["report"].str.len() > 0).all()
    assert manifest["report_original"].str.contains("sinusrhythmus").sum() > 5000
    languages = manifest["language_original"].value_counts()
    assert languages["de"] > languages["en"] > languages["sv"] > 300
    assert set(manifest["sex"]) == {"male", "female"}
