"""How findings are named in free text: synonyms and abbreviations, the SCP statements' own names, and what no statement
covers.

The conversations ask about the 22 findings of `findings.py` only; this longer list is for the fact checker, which reads
what language models write. Taught in: 10 §4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.instruct.findings import BY_NAME, FINDINGS, Finding
from ecgchat_lib.instruct.wording import without_article

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALL = frozenset(STATEMENTS)
_STT = frozenset(code for code, item in STATEMENTS.items() if item.superclass == "STTC")
_BEATS = frozenset({"PVC", "PAC", "PRC(S)", "BIGU", "TRIGU"})
_BUNDLE = frozenset({"CLBBB", "ILBBB", "CRBBB", "IRBBB"})

SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sinus": ("sinus mechanism", "regular sinus rhythm"),
        "sinus_bradycardia": ("sinus brady",),
        "sinus_tachycardia": ("sinus tach",),
        "sinus_arrhythmia": ("respiratory arrhythmia",),
        "afib": ("a fib", "auricular fibrillation", "atrial fib"),
        "flutter": ("a flutter",),
        "svt": ("supraventricular tachyarrhythmia",),
        "paced": ("paced rhythm", "pacemaker", "pacing spikes", "ventricular pacing", "atrial pacing"),
        "av_block": (
            "first degree atrioventricular block",
            "1st degree AV block",
            "1st degree atrioventricular block",
            "AV block first degree",
            "first degree heart block",
        ),
        "lbbb": ("left bundle block", "left BBB"),
        "rbbb": ("right bundle block", "right BBB"),
        "lafb": ("left anterior hemiblock",),
        "pvc": (
            "ventricular extrasystoles",
            "ventricular extrasystole",
            "ventricular ectopy",
            "ventricular ectopic beats",
            "premature ventricular beats",
            "premature ventricular beat",
            "ventricular premature beat",
        ),
        "pac": (
            "atrial extrasystoles",
            "atrial extrasystole",
            "premature atrial beats",
            "premature atrial beat",
            "atrial premature beat",
            "supraventricular extrasystoles",
        ),
        "lvh": ("hypertrophy of the left ventricle", "LV hypertrophy"),
        "anterior_mi": (
            "anterior infarction",
            "anterior infarct",
            "anterior MI",
            "anterior wall infarct",
            "myocardial infarction of the anterior wall",
        ),
        "inferior_mi": (
            "inferior infarction",
            "inferior infarct",
            "inferior MI",
            "inferior wall infarct",
            "myocardial infarction of the inferior wall",
        ),
        "infarction": ("infarction", "infarct", "infarcts", "heart attack", "myocardial scar"),
        "st_depression": (
            "ST segment depression",
            "depressed ST segment",
            "depressed ST segments",
            "depression of the ST segment",
        ),
        "ischemia": (
            "ischemia",
            "ischaemia",
            "ischaemic changes",
            "ischemic change",
            "myocardial ischemia",
            "signs of ischemia",
        ),
        "t_changes": (
            "T wave abnormalities",
            "T wave change",
            "T wave inversions",
            "changes of the T wave",
            "abnormality of the T wave",
        ),
        "long_qt": ("prolonged QT", "long QT", "QT interval is prolonged", "QTc is prolonged", "prolonged QTc"),
    }
)

ABBREVIATIONS: Mapping[str, str] = MappingProxyType(
    {
        "AF": "afib",
        "AFib": "afib",
        "Afib": "afib",
        "AFIB": "afib",
        "A-fib": "afib",
        "AFL": "flutter",
        "NSR": "sinus",
        "SVT": "svt",
        "LBBB": "lbbb",
        "RBBB": "rbbb",
        "LAFB": "lafb",
        "LAHB": "lafb",
        "PVC": "pvc",
        "VPB": "pvc",
        "VPC": "pvc",
        "PAC": "pac",
        "APC": "pac",
        "APB": "pac",
        "LVH": "lvh",
        "MI": "infarction",
        "CLBBB": "clbbb",
        "CRBBB": "crbbb",
        "ILBBB": "ilbbb",
        "IRBBB": "irbbb",
        "RVH": "rvh",
        "LPFB": "lpfb",
        "IVCD": "ivcd",
        "WPW": "wpw",
        "LAE": "lao/lae",
        "RAE": "rao/rae",
        "AVB": "any AV block",
        "BBB": "bundle branch block",
        "PSVT": "psvt",
        "VT": "ventricular tachycardia",
        "VF": "ventricular fibrillation",
        "STEMI": "an ST elevation infarction",
        "NSTEMI": "an infarction without ST elevation",
        "CAD": "coronary artery disease",
    }
)


def _group(name: str, codes: Iterable[str], blurs: Iterable[str] = ()) -> Finding:
    return Finding(name, name, frozenset(codes), frozenset(blurs))


def _unknowable(name: str) -> Finding:
    """Return a finding that no statement means or excludes, so that nothing may be said of it."""
    return Finding(name, name, frozenset(), _ALL)


GROUPS: tuple[tuple[Finding, tuple[str, ...]], ...] = (
    (_group("premature beats", _BEATS), ("premature complexes", "premature beats", "extrasystoles", "ectopic beats")),
    (_group("bundle branch block", _BUNDLE, {"IVCD", "WPW", "PACE"}), ("bundle branch block",)),
    (_group("any AV block", {"1AVB", "2AVB", "3AVB"}, {"LPR"}), ("AV block", "atrioventricular block", "heart block")),
    (
        _group("hypertrophy", {"LVH", "RVH", "SEHYP"}, {"VCLVH", "HVOLT"}),
        ("hypertrophy", "ventricular hypertrophy", "hypertrophies"),
    ),
    (_group("atrial enlargement", {"LAO/LAE", "RAO/RAE"}), ("atrial enlargement", "atrial overload")),
    (_group("ST-T changes", _STT, {"STD_", "STE_", "NT_", "LOWT", "INVT", "TAB_"}), ("ST T changes", "ST T change")),
    (_group("ST elevation", {"STE_"}, _STT | {"ANEUR"}), ("ST elevation", "ST elevations", "elevated ST segments")),
    (_group("second-degree AV block", {"2AVB"}, {"3AVB"}), ("2nd degree AV block", "Mobitz", "Wenckebach")),
    (_group("third-degree AV block", {"3AVB"}, {"2AVB"}), ("3rd degree AV block", "complete heart block")),
    (_group("preexcitation", {"WPW"}), ("preexcitation", "pre excitation", "delta wave", "delta waves")),
    *(
        (_unknowable(name), (name.removeprefix("an "), *others))
        for name, others in (
            ("ventricular tachycardia", ("V tach",)),
            ("ventricular fibrillation", ()),
            ("an ST elevation infarction", ("acute infarction", "acute myocardial infarction", "acute MI")),
            ("an infarction without ST elevation", ("non ST elevation infarction",)),
            ("coronary artery disease", ("coronary disease",)),
            ("a junctional rhythm", ("junctional rhythm", "nodal rhythm", "escape rhythm")),
            ("asystole", ()),
            ("hyperkalemia", ()),
            ("hypokalemia", ()),
            ("pericarditis", ()),
            ("myocarditis", ()),
            ("cardiomyopathy", ()),
            ("heart failure", ()),
            ("pulmonary embolism", ()),
            ("Brugada syndrome", ("Brugada pattern", "Brugada")),
            ("torsades de pointes", ("torsades",)),
            ("sick sinus syndrome", ()),
            ("early repolarization", ()),
        )
    ),
)


def _code_finding(code: str) -> Finding:
    """Return the finding that one statement means by itself: the course's, if that has no other code."""
    for finding in FINDINGS:
        if finding.codes == {code}:
            return finding
    kin = STATEMENTS[code].superclass
    blurs = {other for other, item in STATEMENTS.items() if kin and item.superclass == kin and other != code}
    return Finding(code.lower(), PHRASES[code][0], frozenset({code}), frozenset(blurs))


@cache
def _names() -> tuple[dict[str, Finding], dict[str, Finding]]:
    """Return how findings are called: phrases (any case, plain blanks), and abbreviations (as written)."""
    phrases: dict[str, Finding] = {}
    of_code = {code: _code_finding(code) for code in PHRASES if code != "NORM"}
    for finding in FINDINGS:  # first come, first named: the course's findings keep their names
        for text in (without_article(finding.phrase), *SYNONYMS[finding.name]):
            phrases.setdefault(_plain(text), finding)
    for code, finding in of_code.items():
        for text in PHRASES[code]:
            phrases.setdefault(_plain(text.split(", ")[-1]), finding)
    for finding, texts in GROUPS:
        for text in texts:
            phrases.setdefault(_plain(text), finding)
    known = {**{f.name: f for f, _ in GROUPS}, **{f.name: f for f in of_code.values()}, **BY_NAME}
    known |= {code.lower(): finding for code, finding in of_code.items()}
    return phrases, {short: known[name] for short, name in ABBREVIATIONS.items()}


def _plain(text: str) -> str:
    return re.sub(r"[\s-]+", " ", text).lower()


@cache
def _pattern() -> re.Pattern[str]:
    phrases, short = _names()
    longest = sorted(phrases, key=len, reverse=True)
    words = "|".join(re.escape(text).replace(r"\ ", r"[\s-]+") + "(?:es|s)?" for text in longest)
    letters = "|".join(re.escape(text) + "s?" for text in sorted(short, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:(?P<words>(?i:{words}))|(?P<letters>{letters}))(?!\w)")


def find_names(text: str) -> list[tuple[slice, Finding]]:
    """Return the findings that a text names, each with its place, from left to right; the longest name wins."""
    phrases, short = _names()
    found = []
    for match in _pattern().finditer(text):
        if match["words"] is not None:
            key = _plain(match["words"])
            finding = next(phrases[k] for k in (key, key.removesuffix("s"), key.removesuffix("es")) if k in phrases)
        else:
            finding = short.get(match["letters"]) or short[match["letters"].removesuffix("s")]
        found.append((slice(*match.span()), finding))
    return found
