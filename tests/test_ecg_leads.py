from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgchat_lib.ecg.leads import LEADS, canonical_lead

SPELLINGS = {
    "I": ["I", "i", "Lead I", "MDC_ECG_LEAD_I", "DI", "lead 1", "ECG I", " I "],
    "II": ["ii", "Lead II", "DII", "II_ECG", "ecg lead II", "D2", "EKG_II"],
    "III": ["III", "lead-iii", "LeadIII", "Diii"],
    "aVR": ["AVR", "avr", "aVR", "a VR", "MDC_ECG_LEAD_AVR", "lead aVR", "av r"],
    "aVL": ["AVL", "ECG.aVL"],
    "aVF": ["AVF", "ABLEITUNG aVF"],
    "V1": ["v1", "v1 ", "V 1", "MDC_ECG_LEAD_V1", "ECG_V1"],
    "V6": ["V6", "v_6", "leadv6"],
}
NOT_ONE = ["", " ", "I I", "lead V7", "-aVR", "aVR-", "I-II", "V1V2", "xII", "IIx", "IV", "1", "2", "12", "D4", "V"]
NOT_ONE += ["aV", "MLII", "MCL1", "V7", "V9", "V10", "Vx", "VX", "vy", "V3R", "ABP", "PLETH", "RESP", "lead", "ECG"]


@pytest.mark.parametrize(("lead", "name"), [(lead, name) for lead, names in SPELLINGS.items() for name in names])
def test_any_spelling(lead, name):
    assert canonical_lead(name) == lead


@pytest.mark.parametrize("name", NOT_ONE)
def test_other_signals_stay_unknown(name):
    assert canonical_lead(name) is None


@given(
    st.sampled_from(LEADS),
    st.sampled_from(["", "Lead ", "MDC_ECG_LEAD_", "ECG "]),
    st.sampled_from([str.upper, str.lower, str.title]),
    st.sampled_from(["", " ", "\t"]),
)
def test_case_prefix_and_blanks_do_not_matter(lead, prefix, case, blank):
    assert canonical_lead(blank + case(prefix + lead) + blank) == lead


@given(st.text(max_size=30))
def test_whatever_the_name_the_answer_is_a_lead_or_none(name):
    assert canonical_lead(name) in (*LEADS, None)
