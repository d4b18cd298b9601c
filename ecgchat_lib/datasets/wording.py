"""From the English words of a report to SCP statements, with care for hedges and negations.

Made for MIMIC-IV-ECG's machine statements ("Possible inferior infarct - age undetermined"): short, in a fixed
vocabulary, one finding or two in each. It is a table of word patterns and not a language model; what it doesn't know it
leaves out, and it is no judge of a cardiologist's prose. Taught in: 02 §4.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ecgchat_lib.datasets.labels import Statements, get_statement
from ecgchat_lib.datasets.reports import clean_report

# What a hedge makes of a finding that follows it in the same clause, in PTB-XL's percent.
_HEDGES_BEFORE = (
    (r"cannot (?:be )?(?:rule[d]? out|exclude[d]?)|can not rule out|consider|question(?:able)?|\?", 35.0),
    (
        r"possibl[ey]|may (?:be|represent|have|reflect)|might be|could be|suggest(?:s|ing|ive of)?|borderline|or",
        50.0,
    ),
    (r"probabl[ey]|likely|consistent with|compatible with", 80.0),
)
_HEDGES_AFTER = (
    (r"cannot be (?:excluded|ruled out)|not excluded|needs? to be considered", 35.0),
    (r"(?:is|are) (?:possible|borderline)|possible$", 50.0),
    (r"(?:is|are) (?:probable|likely)", 80.0),
)
_OR_ELSE = re.compile(r"[\s(s)]{1,6}or aberran")  # "PVC(s) or aberrant ventricular conduction"
_NEGATION_BEFORE = re.compile(  # what was there before, or is asked for, isn't there now either
    r"\b(?:no|without|denies|absence of|absent|negative for|rather than|instead of|not|previous(?:ly)?"
    r"|when (?:the )?patient|risk of)\b"
)
_NEGATION_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|has|have)?\s*(?:no longer|not) (?:present|seen|evident|found)|(?:is|are) absent"
    r"|ha(?:s|ve) (?:resolved|reverted)|(?:is|are) now (?:negligible|normal|upright)"
    r"|(?:is|are|has been|have been) (?:excluded|ruled out))\b"
)
_CLAUSE = re.compile(r"([.;,]\s+|[.;,]$|\s-+\s|\s*:\s|\b(?:but|although|though|however|except for|except)\b)")
_OPENS_A_LIST = re.compile(r"\b(?:consider|due to|cannot rule out)\b")  # "consider ischemia, electrolyte imbalance, …"

_WALLS = (
    r"(?:antero?|anterior|inferior|infero|lateral|septal|posterior|antero-?septal|antero-?lateral|infero-?lateral|ant)"
)
_WALL_WORDS = (
    ("anterior", re.compile(r"\bant(?:ero|erior)?")),
    ("inferior", re.compile(r"\binfer")),
    ("lateral", re.compile(r"later")),
    ("septal", re.compile(r"sept")),
    ("posterior", re.compile(r"poster")),
)
_LOCATED = re.compile(
    rf"\b(?P<walls>{_WALLS}\w*(?:(?:\s*[-/]\s*|\s+and\s+|\s+){_WALLS}\w*)*)\s+(?:wall\s+)?(?:myocardial\s+|acute\s+|old\s+)*$"
)
_INFARCTS = {
    frozenset({"inferior", "posterior", "lateral"}): "IPLMI",
    frozenset({"inferior", "posterior"}): "IPMI",
    frozenset({"inferior", "lateral"}): "ILMI",
    frozenset({"inferior"}): "IMI",
    frozenset({"anterior", "lateral"}): "ALMI",
    frozenset({"anterior", "septal"}): "ASMI",
    frozenset({"septal"}): "ASMI",
    frozenset({"anterior"}): "AMI",
    frozenset({"lateral"}): "LMI",
    frozenset({"posterior"}): "PMI",
}
_ISCHEMIAS = {
    frozenset({"inferior", "lateral"}): "ISCIL",
    frozenset({"inferior"}): "ISCIN",
    frozenset({"anterior", "lateral"}): "ISCAL",
    frozenset({"anterior", "septal"}): "ISCAS",
    frozenset({"septal"}): "ISCAS",
    frozenset({"anterior"}): "ISCAN",
    frozenset({"lateral"}): "ISCLA",
}

_BLOCK = r"(?:av|a-v|atrioventricular|heart) block"
_FINDINGS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (codes, re.compile(pattern))
    for codes, pattern in (
        ("SR", r"\bsinus (?:rhythm|mechanism)\b"),
        ("SBRAD", r"\bsinus bradycardia\b"),
        ("STACH", r"\bsinus tachycardia\b"),
        ("SARRH", r"\bsinus arrhythmia\b"),
        ("AFIB", r"\batrial fib(?:rillation)?\b|\bafib\b|\batrial flutter/fibrillation\b"),
        ("AFLT", r"\batrial flutter\b|\bfib(?:rillation)?/flutter\b"),
        (
            "PACE",
            r"(?<!wandering )\b(?:atrial|ventricular|av|a-v|dual|electronic|demand|atrial-sensed)[- ](?:sequential )?"
            r"(?:dual )?(?:chamber )?pac(?:ed|ing|emaker)\b"
            r"|(?<!atrial )\bpacemaker (?:rhythm|spikes|ekg|ecg)\b|\bpaced\b",
        ),
        (
            "SVARR",
            r"\b(?:junctional|ectopic atrial|supraventricular|atrial|accelerated junctional) rhythm\b"
            r"|\bwandering atrial pacemaker\b",
        ),
        ("PSVT", r"\bparoxysmal supraventricular tachycardia\b"),
        (
            "SVTAC",
            r"(?<!paroxysmal )\bsupraventricular tachycardia\b"
            r"|\b(?:ectopic |multifocal )?atrial tachycardia\b|\bjunctional tachycardia\b",
        ),
        ("BIGU", r"\bbigemin(?:y|al)\b"),
        ("TRIGU", r"\btrigemin(?:y|al)\b"),
        (
            "PVC",
            r"\bpremature ventricular (?:contraction|complex|beat)"
            r"|\bventricular (?:premature|ectopic|extrasystol)",
        ),
        (
            "PAC",
            r"\bpremature (?:atrial|supraventricular) (?:contraction|complex|beat)"
            r"|\b(?:atrial|supraventricular) (?:premature|ectopic (?:beat|complex)|extrasystol)",
        ),
        ("1AVB", rf"\b(?:first|1st|1) degree {_BLOCK}|\b{_BLOCK}, (?:first|1st) degree"),
        ("LPR", r"\b(?:prolonged|long) p-?r\b|\bp-?r (?:interval )?(?:is )?prolong"),
        ("2AVB", rf"\b(?:second|2nd|2) degree {_BLOCK}|\bmobitz\b|\bwenckebach\b|\b2:1 {_BLOCK}"),
        ("3AVB", rf"\b(?:third|3rd|3) degree {_BLOCK}|\bcomplete {_BLOCK}"),
        ("ILBBB", r"\b(?:incomplete|partial) left bundle branch block"),
        ("CLBBB", r"(?<!incomplete )(?<!partial )\bleft bundle branch block"),
        ("IRBBB", r"\b(?:incomplete|partial) right bundle branch block"),
        ("CRBBB", r"(?<!incomplete )(?<!partial )\bright bundle branch block"),
        ("LAFB", r"\bleft anterior (?:fascicular block|hemiblock)"),
        ("LPFB", r"\bleft posterior (?:fascicular block|hemiblock)"),
        ("IVCD", r"\b(?:intraventricular|iv) (?:conduction )?(?:delay|defect|disturbance|block)"),
        ("WPW", r"\bwolff[- ]parkinson[- ]white|\b(?:ventricular )?pre-?excitation"),
        (
            "VCLVH",
            r"\bleft ventricular hypertrophy by voltage"
            r"|\bvoltage criteria (?:\w+ ){0,3}left ventricular hypertrophy"
            r"|\bvoltages? (?:is|are) high (?:[\w-]+ ){0,4}suggesting left ventricular hypertrophy",
        ),
        ("LVH", r"(?<!for )\bleft ventricular hypertrophy(?! by voltage)"),
        ("RVH", r"\bright ventricular hypertrophy"),
        ("LVH RVH", r"\bbiventricular hypertrophy"),
        ("SEHYP", r"\bseptal hypertrophy"),
        ("LAO/LAE", r"\bleft atrial (?:enlargement|abnormality|overload|hypertrophy)"),
        ("RAO/RAE", r"\bright atrial (?:enlargement|abnormality|overload|hypertrophy)"),
        ("LAO/LAE RAO/RAE", r"\bbiatrial (?:enlargement|abnormality)"),
        ("LVOLT", r"\blow (?:qrs |limb lead |precordial )*voltages?\b"),
        ("HVOLT", r"\bhigh (?:qrs )?voltages?\b"),
        ("LNGQT", r"\b(?:prolonged|long) qtc?\b|\bqtc? (?:interval )?(?:is )?prolong"),
        ("QWAVE", r"\bq waves?\b(?!.*\bnormal\b)"),
        ("STD_", r"\bst (?:segment )?depression|\bst segments? (?:is|are) depressed"),
        ("STE_", r"(?<!non-)(?<!non )\bst (?:segment )?elevation|\bst segments? (?:is|are) elevated"),
        ("NST_ NT_", r"\bst-t (?:wave )?(?:abnormalit|change)|\bst & t|\bst and t wave (?:abnormalit|change)"),
        ("NST_", r"\bst (?:segment )?(?:abnormalit|change)"),
        ("INVT", r"\bt[- ]wave inversion|\binverted t\b|\bt waves? (?:is|are) (?:\w+ )?inverted"),
        ("LOWT", r"\b(?:flat|low|flattened) (?:amplitude )?t[- ]?waves?\b|\bt[- ]wave flattening"),
        (
            "NT_",
            r"\bnon-?\s?specific t[- ]wave (?:abnormalit|change)"
            r"|\bt[- ]wave (?:abnormalit\w+|changes?) (?:is|are) non-?specific",
        ),
        ("TAB_", r"(?<!specific )\bt[- ]wave (?:abnormalit\w+|changes?)(?! (?:is|are) non-?specific)"),
        ("DIG", r"\bdigitalis|\bdigoxin effect"),
        (
            "EL",
            r"\belectrolyte (?:imbalance|disturbance|abnormalit)|\bhyperkal[a]?emia|\bhypokal[a]?emia"
            r"|\bhypocalc[a]?emia",
        ),
        ("ANEUR", r"\bventricular aneurysm"),
        (
            "NORM",
            r"(?<!except )\bnormal (?:ecg|ekg|electrocardiogram|tracing)\b"
            r"|\bwithin normal limits\b|\bno definite pathology\b",
        ),
    )
)
_INFARCT = re.compile(r"\b(?:myocardial )?infarct(?:ion)?\b")
_ISCHEMIA = re.compile(r"\b(?:myocardial )?(?:injury\s*/\s*)?isch[a]?emi[ac]\b")
_NOT_ITS_PLACE = re.compile(r"\b(?:accompan\w+|reciprocal)\b")
_PLAIN = {"PVC": 100.0}  # PTB-XL writes 100 for it, though it is a form statement


@lru_cache(maxsize=200_000)
def statements_from_text(text: str) -> Statements:
    """Read the SCP statements that an English report or machine statement makes.

    A hedge lowers the likelihood of what it goes with: "cannot rule out" and "consider" to 35 percent, "possible" and
    "may be" to 50, "probable" and "consistent with" to 80. A negated finding is left out. Plain diagnoses get 100 and
    plain rhythm and form statements 0, as in PTB-XL; "otherwise normal ECG" is NORM at 80, as there.

    Args:
        text: one or more statements, abbreviations allowed.

    Returns:
        (SCP code, likelihood) pairs in the order of their first mention; where one code is said twice, the surer one.
    """
    found: dict[str, float] = {}
    for sentence in re.split(r"(?<=[.;])\s+", clean_report(text).lower()):
        walls: frozenset[str] = frozenset()
        opening, pieces = "", _CLAUSE.split(sentence)
        for clause, separator in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            for code, likelihood in _read_clause(opening + clause, walls):
                found[code] = _surer(found[code], likelihood) if code in found else likelihood
            walls = walls or _walls_in(clause)
            listed = separator.strip() == "," and (opening or _OPENS_A_LIST.search(clause))
            opening = "consider " if listed else ""
    return tuple(found.items())


def _read_clause(clause: str, earlier_walls: frozenset[str]) -> list[tuple[str, float]]:
    mentions: list[tuple[int, int, str]] = []
    for codes, pattern in _FINDINGS:
        mentions += [(match.start(), match.end(), code) for match in pattern.finditer(clause) for code in codes.split()]
    for pattern, places in ((_INFARCT, _INFARCTS), (_ISCHEMIA, _ISCHEMIAS)):
        for match in pattern.finditer(clause):
            located = _located(clause, match, places, earlier_walls)
            mentions += [(match.start(), match.end(), code) for code in located]
    out = []
    for start, end, code in sorted(mentions):
        likelihood = _likelihood(clause, start, end, code)
        if likelihood is not None:
            out.append((code, likelihood))
    return out


def _likelihood(clause: str, start: int, end: int, code: str) -> float | None:
    """Return what to write for a mention, None where it is negated."""
    before, after = clause[:start], clause[end:]
    hedge = min((value for pattern, value in _HEDGES_AFTER if re.search(rf"\b(?:{pattern})", after)), default=None)
    if hedge is None and _OR_ELSE.match(after):
        hedge = 50.0
    for pattern, value in _HEDGES_BEFORE:
        if hedge is None and re.search(rf"(?<![\w-])(?:{pattern})(?![\w-])", before):
            hedge = value
    if hedge is None or hedge > 35:
        unhedged = re.sub(r"can\s?not (?:be )?(?:rule[d]? out|exclude[d]?)|not excluded", "", before)
        if _NEGATION_BEFORE.search(unhedged) or _NEGATION_AFTER.search(after):
            return None
    if code == "2AVB" and clause[start:].startswith("2:1") and re.search(r"\b(?:flutter|tachycardia)\b", before):
        return None  # the AV node does what it should
    if hedge is not None:
        return hedge
    if code == "NORM":
        return 80.0 if re.search(r"\botherwise\b", before) or "definite" in clause[start:end] else 100.0
    return _PLAIN.get(code, 100.0 if get_statement(code).superclass else 0.0)


def _located(
    clause: str, match: re.Match[str], places: dict[frozenset[str], str], earlier: frozenset[str]
) -> list[str]:
    """Name an infarct or ischemia by its walls: those right before the word, else the clause's, else the sentence's."""
    near = _LOCATED.search(clause[: match.start()])
    if near is not None:
        walls = _walls_in(near["walls"])
    elif _NOT_ITS_PLACE.search(clause):
        return []
    else:
        walls = _walls_in(clause[: match.start()]) or earlier
    codes = [places[group] for group in _groups(walls, places)]
    return codes or (["ISC_"] if places is _ISCHEMIAS else [])


def _groups(walls: frozenset[str], places: dict[frozenset[str], str]) -> list[frozenset[str]]:
    """Return the walls as one known group, or parted into a lower and a front one ("inferior and anteroseptal")."""
    if walls in places:
        return [walls]
    front = walls & {"anterior", "septal"}
    lower = walls - front
    if "lateral" in lower and not lower & {"inferior", "posterior"}:
        front, lower = front | lower, frozenset()
    found = []
    for part in (lower, front):
        whole = next((group for group in (part, part - {"septal"}) if group in places), None)
        single = [frozenset({wall}) for wall in sorted(part)]
        found += [group for group in single if group in places] if whole is None else [whole]
    return found


def _walls_in(text: str) -> frozenset[str]:
    cleared = re.sub(r"left (?:anterior|posterior) (?:fascicular|hemiblock|descending)\w*", "", text)
    return frozenset(name for name, pattern in _WALL_WORDS if pattern.search(cleared))


def _surer(one: float, other: float) -> float:
    return one if one in (0.0, 100.0) else other if other in (0.0, 100.0) else max(one, other)
