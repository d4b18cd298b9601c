"""From machine statements to SCP statements: hedges, negations, places."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.datasets.ptbxl import load_ptbxl
from ecgchat_lib.datasets.wording import statements_from_text

REAL = os.environ.get("ECGCHAT_REAL_DATA")

READ = [
    # plain
    ("Sinus rhythm", {"SR": 0}),
    ("Sinus bradycardia", {"SBRAD": 0}),
    ("Sinus tachycardia.", {"STACH": 0}),
    ("Sinus rhythm with PACs with 1st degree A-V block", {"SR": 0, "PAC": 0, "1AVB": 100}),
    ("Atrial fibrillation with rapid ventricular response", {"AFIB": 0}),
    ("Atrial flutter with 2:1 A-V block", {"AFLT": 0}),  # the AV node does what it should
    ("Sinus rhythm with 2:1 A-V block", {"SR": 0, "2AVB": 100}),
    ("Supraventricular tachycardia", {"SVTAC": 0}),
    ("LBBB", {"CLBBB": 100}),
    ("Left bundle branch block", {"CLBBB": 100}),
    ("Incomplete RBBB", {"IRBBB": 100}),
    ("IV conduction defect", {"IVCD": 100}),
    ("Left anterior fascicular block", {"LAFB": 100}),
    ("Left ventricular hypertrophy", {"LVH": 100}),
    ("Left ventricular hypertrophy by voltage only", {"VCLVH": 0}),
    ("Biventricular hypertrophy", {"LVH": 100, "RVH": 100}),
    ("Left atrial abnormality", {"LAO/LAE": 100}),
    ("Low QRS voltages in limb leads", {"LVOLT": 0}),
    ("Prolonged QT interval", {"LNGQT": 100}),
    ("Nonspecific T wave abnormality", {"NT_": 0}),
    ("A-V sequential pacemaker", {"PACE": 0}),
    ("Ventricular pacing", {"PACE": 0}),
    ("Pacemaker rhythm - no further analysis", {"PACE": 0}),
    ("Wandering atrial pacemaker", {"SVARR": 0}),
    ("PVC(s)", {"PVC": 100}),
    # places
    ("Inferior infarct - age undetermined", {"IMI": 100}),
    ("Anterolateral infarct", {"ALMI": 100}),
    ("Inferior and posterior infarct", {"IPMI": 100}),
    ("Septal infarct", {"ASMI": 100}),
    ("Anterior/lateral ischemia", {"ISCAL": 100}),
    ("Left anterior fascicular block, myocardial infarct", {"LAFB": 100}),  # "anterior" belongs to the block
    ("Marked inferior ST depression accompanies the infarct", {"STD_": 0}),
    ("Anteroseptal ST depression is probably reciprocal to inferior infarct", {"STD_": 0, "IMI": 80}),
    ("Inferior and ant/septal ST elevation, CONSIDER ACUTE INFARCT", {"STE_": 0, "IMI": 35, "ASMI": 35}),
    ("Inferior and anterior T wave changes may be due to myocardial ischemia", {"TAB_": 0, "ISCIN": 50, "ISCAN": 50}),
    ("Anteroseptal and lateral infarct", {"ALMI": 100}),
    ("Possible posterior extension of infarct", {"PMI": 50}),
    ("Inferior/lateral/posterior infarct", {"IPLMI": 100}),
    ("Lateral and posterior infarct", {"LMI": 100, "PMI": 100}),
    ("Prolonged P-R interval", {"LPR": 0}),
    ("Borderline prolonged QT interval", {"LNGQT": 50}),
    ("Inferior Q waves may be due to cardiomyopathy", {"QWAVE": 0}),
    ("Left axis deviation - possible left anterior fascicular block", {"LAFB": 50}),
    # hedges
    ("Possible inferior infarct - age undetermined", {"IMI": 50}),
    ("Possible left atrial abnormality", {"LAO/LAE": 50}),
    ("Probable left atrial enlargement", {"LAO/LAE": 80}),
    ("Consider left atrial abnormality", {"LAO/LAE": 35}),
    ("Borderline first degree A-V block", {"1AVB": 50}),
    ("Poor R wave progression - cannot rule out anteroseptal infarct", {"ASMI": 35}),
    ("Old anteroseptal MI cannot be excluded", {"ASMI": 35}),
    ("Q in V1/V2 may be due to LVH though septal infarct cannot be excluded", {"LVH": 50, "ASMI": 35}),
    ("Inferior ST-T changes may be due to myocardial ischemia", {"NST_": 100, "NT_": 0, "ISCIN": 50}),
    ("Lateral T wave changes may be due to ischemia", {"TAB_": 0, "ISCLA": 50}),
    ("Lateral ST elevation, CONSIDER ACUTE INFARCT", {"STE_": 0, "LMI": 35}),
    ("Prolonged QT - consider ischemia, electrolyte imbalance, drug effects", {"LNGQT": 100, "ISC_": 35, "EL": 35}),
    ("Atrial fibrillation with PVC(s) or aberrant ventricular conduction.", {"AFIB": 0, "PVC": 50}),
    ("Sinus rhythm, possible LVH", {"SR": 0, "LVH": 50}),
    ("Possible RBBB. RBBB", {"CRBBB": 100}),  # said twice: the surer one
    # negations
    ("No LVH", {}),
    ("no evidence of left bundle branch block", {}),
    ("Sinus rhythm without ST elevation", {"SR": 0}),
    ("Atrial fibrillation is no longer present", {}),
    ("ST depression has resolved", {}),
    ("Inferior infarct has been ruled out", {}),
    ("Not LBBB but RBBB", {"CRBBB": 100}),
    ("non-ST elevation", {}),
    # from PTB-XL's English reports
    ("rhythm was previously atrial fibrillation", {}),
    ("the atrial fibrillation has reverted to sinus rhythm", {"SR": 0}),
    ("the previously noted st segment depression is now negligible", {}),
    ("suggest repeat when patient has reverted to sinus rhythm", {}),
    ("voltages are high in chest leads suggesting lvh", {"VCLVH": 0, "LVH": 50}),
    ("non-specific intraventricular block", {"IVCD": 100}),
    ("atrial flutter/fibrillation", {"AFLT": 0, "AFIB": 0}),
    ("sinus rhythm. no definite pathology.", {"SR": 0, "NORM": 80}),
    ("pacemaker ekg", {"PACE": 0}),
    ("patient may be at increased risk of complete heart block", {}),
    # normal and its neighbors
    ("Normal ECG", {"NORM": 100}),
    ("Normal ECG except for rate", {"NORM": 100}),
    ("Otherwise normal ECG", {"NORM": 80}),
    ("Abnormal ECG", {}),
    ("Borderline ECG", {}),
    ("Normal sinus rhythm", {"SR": 0}),
    ("Early repolarization, probable normal variant", {}),
    # words inside words
    ("minimal changes in limb leads", {}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_statements_from_text(text, expected):
    assert dict(statements_from_text(text)) == expected


def test_case_and_spaces_do_not_matter():
    for text, expected in READ:
        assert dict(statements_from_text(f"  {text.upper()} ")) == expected or "LAD" in text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([text for text, _ in READ]), max_size=5))
def test_any_mixture_gives_known_codes_once(texts):
    found = statements_from_text(". ".join(texts))
    codes = [code for code, _ in found]
    assert len(set(codes)) == len(codes)
    assert set(codes) <= set(STATEMENTS)
    assert all(0 <= likelihood <= 100 for _, likelihood in found)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error(text):
    assert set(dict(statements_from_text(text))) <= set(STATEMENTS)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="ECGCHAT_REAL_DATA is not set: no real reports to read")
def test_rhythms_of_seven_thousand_real_reports():
    """PTB-XL's English reports were written by people; what they say of the rhythm is what the annotators coded."""
    manifest = load_ptbxl(Path(REAL) / "ptbxl", require_files=False)
    english = manifest[manifest["language_original"] == "en"]
    assert len(english) > 7000
    read = [dict(statements_from_text(text)) for text in english["report_original"]]
    coded = [dict(cell) for cell in english["statements"]]
    for code in ("SR", "AFIB", "STACH", "SBRAD", "SARRH"):
        both = sum(code in one and code in other for one, other in zip(read, coded, strict=True))
        assert both >= 0.98 * sum(code in one for one in read), code
        assert both >= 0.98 * sum(code in one for one in coded), code
