"""The findings that conversations talk about: which SCP-ECG statements each one covers, and how it is worded.

Several statements can mean one finding (a question about bundle branch block covers the complete and the incomplete
one). What a recording's statements neither state nor exclude is "unsaid", and nobody is asked about it.
Taught in: 10 §2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ecgchat_lib.datasets.labels import STATEMENTS, superclasses
from ecgchat_lib.errors import EcgChatError

CERTAIN = 50.0  # percent; PTB-XL's likelihood from which a statement is spoken of as present


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        name: short key, such as "afib".
        phrase: how an answer names it, such as "atrial fibrillation".
        codes: the SCP-ECG statements that mean it.
        blurs: further statements that make "absent" unsafe to say.
        rhythm: whether it names the rhythm itself.
    """

    name: str
    phrase: str
    codes: frozenset[str]
    blurs: frozenset[str] = frozenset()
    rhythm: bool = False


def _of_class(superclass: str) -> frozenset[str]:
    return frozenset(code for code, item in STATEMENTS.items() if item.superclass == superclass)


def _finding(name: str, phrase: str, codes: Iterable[str], blurs: Iterable[str] = (), rhythm: bool = False) -> Finding:
    return Finding(name, phrase, frozenset(codes), frozenset(blurs), rhythm)


_ST = {"STD_", "STE_", "NST_", "NDT", "NT_", "INVT", "TAB_", "LOWT", "ANEUR", "DIG", "EL"}
_ISCHEMIC = {code for code in STATEMENTS if code.startswith("ISC")}
_INJURY = {code for code in STATEMENTS if code.startswith("INJ")}
_MI = _of_class("MI") - _INJURY
_NO_MI = _MI | _INJURY | {"QWAVE"}

FINDINGS: tuple[Finding, ...] = (
    _finding("sinus", "sinus rhythm", {"SR"}, {"SARRH", "SBRAD", "STACH"}, rhythm=True),
    _finding("sinus_bradycardia", "sinus bradycardia", {"SBRAD"}, rhythm=True),
    _finding("sinus_tachycardia", "sinus tachycardia", {"STACH"}, rhythm=True),
    _finding("sinus_arrhythmia", "sinus arrhythmia", {"SARRH"}, {"SVARR", "PAC", "PRC(S)"}, rhythm=True),
    _finding("afib", "atrial fibrillation", {"AFIB"}, {"AFLT", "SVARR"}, rhythm=True),
    _finding("flutter", "atrial flutter", {"AFLT"}, {"AFIB", "SVTAC", "PSVT", "SVARR"}, rhythm=True),
    _finding("svt", "supraventricular tachycardia", {"SVTAC", "PSVT"}, {"AFLT", "AFIB", "SVARR"}, rhythm=True),
    _finding("paced", "a pacemaker rhythm", {"PACE"}, rhythm=True),
    _finding("av_block", "first-degree AV block", {"1AVB"}, {"LPR", "2AVB", "3AVB"}),
    _finding("lbbb", "left bundle branch block", {"CLBBB", "ILBBB"}, {"IVCD", "WPW", "PACE"}),
    _finding("rbbb", "right bundle branch block", {"CRBBB", "IRBBB"}, {"IVCD", "WPW", "PACE"}),
    _finding("lafb", "left anterior fascicular block", {"LAFB"}, {"LPFB", "IVCD"}),
    _finding("pvc", "ventricular premature beats", {"PVC"}, {"PRC(S)", "BIGU", "TRIGU"}),
    _finding("pac", "atrial premature beats", {"PAC"}, {"PRC(S)", "SVARR", "BIGU", "TRIGU"}),
    _finding("lvh", "left ventricular hypertrophy", {"LVH"}, {"VCLVH", "SEHYP", "HVOLT"}),
    _finding("anterior_mi", "an anterior myocardial infarction", {"AMI", "ASMI", "ALMI"}, _NO_MI),
    _finding("inferior_mi", "an inferior myocardial infarction", {"IMI", "ILMI", "IPMI", "IPLMI"}, _NO_MI),
    _finding("infarction", "a myocardial infarction", _MI, _INJURY | {"QWAVE", "ABQRS"}),
    _finding("st_depression", "ST depression", {"STD_"}, {"NST_", "STE_"} | _ISCHEMIC | _INJURY),
    _finding("ischemia", "ischemic changes", _ISCHEMIC, _ST | _INJURY),
    _finding("t_changes", "T wave changes", {"NDT", "NT_", "INVT", "TAB_", "LOWT"}, _ST | _ISCHEMIC),
    _finding("long_qt", "a long QT interval", {"LNGQT"}),
)  # fmt: skip

BY_NAME: dict[str, Finding] = {finding.name: finding for finding in FINDINGS}


def get_finding(name: str) -> Finding:
    """Return a finding by its name.

    Raises:
        EcgChatError: there is none of that name.
    """
    if name not in BY_NAME:
        raise EcgChatError(f"unknown finding {name!r}; expected one of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def is_certain(likelihood: float) -> bool:
    """Return whether a statement is spoken of as present: at least `CERTAIN` percent, or 0, PTB-XL's "not given"."""
    return likelihood == 0 or likelihood >= CERTAIN


def present_codes(statements: Iterable[tuple[str, float]]) -> frozenset[str]:
    """Return the codes that a recording's statements (code, likelihood in percent) state with certainty."""
    return frozenset(code for code, likelihood in statements if is_certain(likelihood))


def presence(finding: Finding, statements: Iterable[tuple[str, float]]) -> bool | None:
    """Return whether a recording has a finding: True, False, or None where its statements leave it open.

    Absent means that no statement, however unlikely, is one of the finding's or blurs it. A recording without any
    statement says nothing.

    Args:
        finding: which one.
        statements: (code, likelihood in percent) pairs.
    """
    pairs = tuple(statements)
    if finding.codes & present_codes(pairs):
        return True
    stated = {code for code, _ in pairs}
    if not stated or stated & (finding.codes | finding.blurs):
        return None
    return False


def rhythm_of(statements: Iterable[tuple[str, float]]) -> str | None:
    """Return the name of the rhythm that the statements state, or None if they state none or disagree.

    Sinus rhythm gives way to its special kinds (sinus bradycardia, tachycardia, arrhythmia), which imply it.
    """
    present = present_codes(statements)
    names = [finding.name for finding in FINDINGS if finding.rhythm and finding.codes & present]
    if len(names) > 1 and "sinus" in names:
        names.remove("sinus")
    return names[0] if len(names) == 1 else None


def is_contradicted(rhythm: str, rate: int | None) -> bool:
    """Return whether the measured rate, per minute, speaks against a stated slow, fast or plain sinus rhythm."""
    if rate is None:
        return False
    slow, fast = rhythm == "sinus_bradycardia", rhythm == "sinus_tachycardia"
    return (slow and rate > 62) or (fast and rate < 96) or (rhythm == "sinus" and not 48 <= rate <= 108)


def findings_of(statements: Iterable[tuple[str, float]], rate: int | None = None) -> list[str]:
    """Return the names of what is present: the rhythm first, and no general finding beside its special one.

    Args:
        statements: (code, likelihood in percent) pairs.
        rate: the measured heart rate, or None; a rhythm that it contradicts is left out.
    """
    pairs = tuple(statements)
    rhythm = rhythm_of(pairs)
    names = [f.name for f in FINDINGS if not f.rhythm and presence(f, pairs)]
    if {"anterior_mi", "inferior_mi"} & set(names):
        names.remove("infarction")
    return ([rhythm] if rhythm and not is_contradicted(rhythm, rate) else []) + names


def verdict_of(statements: Iterable[tuple[str, float]], rate: int | None = None) -> str | None:
    """Return "normal", "borderline" (called normal, yet with a finding), "abnormal", or None if nothing is said.

    Args:
        statements: (code, likelihood in percent) pairs.
        rate: the measured heart rate, or None.
    """
    pairs = tuple(statements)
    present = present_codes(pairs)
    classes = set(superclasses(code for code in present if code in STATEMENTS)) - {"NORM"}
    others = classes or set(findings_of(pairs, rate)) - {"sinus", "sinus_arrhythmia"}
    if "NORM" in present:
        return "borderline" if others else "normal"
    return "abnormal" if others else None


def rhythm_class(name: str | None) -> str | None:
    """Return the coarse class of a rhythm: "sinus", "afib" or "other" (None stays None)."""
    if name is None:
        return None
    return name if name == "afib" else ("sinus" if name.startswith("sinus") else "other")
