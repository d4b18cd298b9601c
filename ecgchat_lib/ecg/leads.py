"""The twelve leads, their order, and how to recognize a lead whatever its file calls it.

Leads are found by name, never by position: files differ in order, case and prefix. Lead arithmetic (Einthoven's and
Goldberger's identities) is checked in `quality.py`, not here. Taught in: 01 §2 and §4.
"""

from __future__ import annotations

import re

LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The order of the leads in every array of the course."""

_PREFIXES = re.compile(r"^(MDC_?ECG_?LEAD|(E[CK]G|LEAD|ABL(EITUNG)?|DERIVATION)(?=[\s_.:-]|I|V|AV|\d))[\s_.:-]*")
_SUFFIXES = re.compile(r"[\s_.:-]+(E[CK]G|LEAD)$")
_DIGITS = {"1": "I", "2": "II", "3": "III", "DI": "I", "DII": "II", "DIII": "III", "D1": "I", "D2": "II", "D3": "III"}
_BY_KEY = {lead.upper(): lead for lead in LEADS}


def canonical_lead(name: str) -> str | None:
    """Return the standard spelling of a lead name, or None if it isn't one of the twelve.

    Understands any case, blanks, and the usual prefixes and suffixes ("avr", "AVR", "Lead II", "MDC_ECG_LEAD_V1",
    "v1 ", "ECG_V5", "DII"). Leads that are something else stay unknown: "-aVR" (inverted), "MLII" (modified),
    "V7", "Vx", "V3R".

    Args:
        name: the name in the file.

    Returns:
        One of `LEADS`, or None.
    """
    key = name.strip().upper()
    stripped = _PREFIXES.sub("", key, count=1)
    stripped = _SUFFIXES.sub("", stripped)
    compact = re.sub(r"(?<=[A-Z])[\s_](?=[A-Z\d])", "", stripped)
    if stripped != key:  # "Lead 2" is a lead; a bare "2" is a channel number
        compact = _DIGITS.get(compact, compact)
    elif compact.startswith("D"):
        compact = _DIGITS.get(compact, compact)
    return _BY_KEY.get(compact)
