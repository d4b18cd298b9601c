"""The twelve leads, their order, and how to recognize a lead whatever its file calls it.

Leads are found by name, never by position: files differ in order, case and prefix. Lead arithmetic (Einthoven's and
Goldberger's identities) is checked in `quality.py`, not here. Taught in: 01 §2 and §4.
"""

from __future__ import annotations

import re

LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The order of the leads in every array of the course."""

_PREFIX = re.compile(r"^(MDC_ECG_LEAD_|((E[CK]G|LEAD|ABLEITUNG)[\s_.:-]*)+)(?=[\dADIV])")
_SUFFIX = re.compile(r"[\s_.:-]+(E[CK]G|LEAD)$")
_NUMBERED = {"1": "I", "2": "II", "3": "III"}
_ROMANCE = {"DI": "I", "DII": "II", "DIII": "III", "D1": "I", "D2": "II", "D3": "III"}
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
    bare = _SUFFIX.sub("", _PREFIX.sub("", key))
    bare = re.sub(r"^(A)?[\s_]?(V)[\s_]?([RLF1-6])$", lambda m: "".join(m.groups(default="")), bare)
    if bare != key:  # "Lead 2" is a lead; a bare "2" is a channel number
        bare = _NUMBERED.get(bare, bare)
    return _BY_KEY.get(_ROMANCE.get(bare, bare))
