"""Report texts: English sentences from SCP statements, and cleaning of existing reports word by word.

Sentences are drawn from a bank of phrasings, so the same statements read differently from record to record, and the
same seed always reads the same. It doesn't translate and doesn't interpret a signal. Taught in: 02 §4 and §6.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ecgchat_lib.datasets.labels import get_statement

# Each code: the ways to say it, as a noun phrase in the middle of a sentence.
PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # rhythm
        "SR": ("sinus rhythm", "normal sinus rhythm", "the rhythm is sinus"),
        "SBRAD": ("sinus bradycardia", "slow sinus rhythm", "bradycardic sinus rhythm"),
        "STACH": ("sinus tachycardia", "fast sinus rhythm", "tachycardic sinus rhythm"),
        "SARRH": ("sinus arrhythmia", "sinus rhythm with varying cycle length", "irregular sinus rhythm"),
        "AFIB": (
            "atrial fibrillation",
            "irregular rhythm without P waves, atrial fibrillation",
            "absolute arrhythmia in atrial fibrillation",
        ),
        "AFLT": ("atrial flutter", "flutter waves, atrial flutter", "atrial flutter with a sawtooth baseline"),
        "PACE": ("paced rhythm", "normally functioning artificial pacemaker", "pacemaker rhythm"),
        "SVARR": ("supraventricular arrhythmia", "irregular supraventricular rhythm"),
        "BIGU": ("bigeminal pattern", "bigeminy"),
        "TRIGU": ("trigeminal pattern", "trigeminy"),
        "SVTAC": ("supraventricular tachycardia", "narrow complex tachycardia of supraventricular origin"),
        "PSVT": ("paroxysmal supraventricular tachycardia", "a run of supraventricular tachycardia"),
        # ectopic beats
        "PVC": ("ventricular premature complexes", "premature ventricular contractions", "ventricular ectopic beats"),
        "PAC": ("atrial premature complexes", "premature atrial contractions", "supraventricular ectopic beats"),
        "PRC(S)": ("premature complexes", "ectopic beats of unclear origin"),
        # conduction
        "1AVB": (
            "first degree AV block",
            "prolonged PR interval, first degree AV block",
            "first degree atrioventricular block",
        ),
        "2AVB": ("second degree AV block", "second degree atrioventricular block"),
        "3AVB": ("third degree AV block", "complete atrioventricular block"),
        "CLBBB": (
            "complete left bundle branch block",
            "left bundle branch block",
            "wide QRS of left bundle branch block",
        ),
        "CRBBB": (
            "complete right bundle branch block",
            "right bundle branch block",
            "wide QRS of right bundle branch block",
        ),
        "ILBBB": ("incomplete left bundle branch block", "partial left bundle branch block"),
        "IRBBB": ("incomplete right bundle branch block", "partial right bundle branch block"),
        "IVCD": (
            "non-specific intraventricular conduction disturbance",
            "unspecific intraventricular conduction delay",
        ),
        "LAFB": (
            "left anterior fascicular block",
            "left anterior hemiblock",
            "left axis deviation, left anterior fascicular block",
        ),
        "LPFB": ("left posterior fascicular block", "left posterior hemiblock"),
        "WPW": ("ventricular preexcitation of Wolff-Parkinson-White type", "Wolff-Parkinson-White pattern"),
        "LPR": ("prolonged PR interval", "long PR interval"),
        # infarction
        "IMI": (
            "inferior myocardial infarction",
            "myocardial infarction of the inferior wall",
            "inferior wall infarction",
        ),
        "ASMI": (
            "anteroseptal myocardial infarction",
            "myocardial infarction of the anteroseptal wall",
            "anteroseptal infarction",
        ),
        "AMI": (
            "anterior myocardial infarction",
            "myocardial infarction of the anterior wall",
            "anterior wall infarction",
        ),
        "ALMI": ("anterolateral myocardial infarction", "myocardial infarction of the anterolateral wall"),
        "LMI": ("lateral myocardial infarction", "myocardial infarction of the lateral wall"),
        "ILMI": ("inferolateral myocardial infarction", "myocardial infarction of the inferolateral wall"),
        "IPMI": ("inferoposterior myocardial infarction", "myocardial infarction of the inferoposterior wall"),
        "IPLMI": (
            "inferoposterolateral myocardial infarction",
            "infarction of the inferior, posterior and lateral walls",
        ),
        "PMI": ("posterior myocardial infarction", "myocardial infarction of the posterior wall"),
        "INJAS": ("subendocardial injury in the anteroseptal leads", "anteroseptal subendocardial injury"),
        "INJAL": ("subendocardial injury in the anterolateral leads", "anterolateral subendocardial injury"),
        "INJIN": ("subendocardial injury in the inferior leads", "inferior subendocardial injury"),
        "INJLA": ("subendocardial injury in the lateral leads", "lateral subendocardial injury"),
        "INJIL": ("subendocardial injury in the inferolateral leads", "inferolateral subendocardial injury"),
        # hypertrophy and overload
        "LVH": ("left ventricular hypertrophy", "hypertrophy of the left ventricle"),
        "RVH": ("right ventricular hypertrophy", "hypertrophy of the right ventricle"),
        "SEHYP": ("septal hypertrophy", "hypertrophy of the septum"),
        "LAO/LAE": ("left atrial enlargement", "left atrial overload"),
        "RAO/RAE": ("right atrial enlargement", "right atrial overload"),
        "VCLVH": (
            "voltage criteria for left ventricular hypertrophy",
            "high voltages that meet the criteria for left ventricular hypertrophy",
        ),
        # ST and T
        "NDT": (
            "non-diagnostic T wave abnormalities",
            "unspecific T wave abnormality",
            "T wave changes without diagnostic value",
        ),
        "NST_": ("non-specific ST changes", "unspecific ST segment changes", "minor ST segment changes"),
        "NT_": ("non-specific T wave changes", "unspecific T wave changes"),
        "STD_": ("non-specific ST depression", "ST segment depression", "depressed ST segments"),
        "STE_": ("non-specific ST elevation", "ST segment elevation", "raised ST segments"),
        "LNGQT": ("long QT interval", "prolonged QT interval", "QT prolongation"),
        "DIG": ("digitalis effect", "ST changes as under digitalis"),
        "EL": (
            "ST-T changes as in electrolyte disturbance or drug effect",
            "repolarization changes, electrolytes or drugs to be considered",
        ),
        "ISC_": ("non-specific ischemic changes", "ST-T changes that suggest ischemia"),
        "ISCAL": ("ischemic changes in the anterolateral leads", "anterolateral ischemia"),
        "ISCIN": ("ischemic changes in the inferior leads", "inferior ischemia"),
        "ISCIL": ("ischemic changes in the inferolateral leads", "inferolateral ischemia"),
        "ISCAS": ("ischemic changes in the anteroseptal leads", "anteroseptal ischemia"),
        "ISCLA": ("ischemic changes in the lateral leads", "lateral ischemia"),
        "ISCAN": ("ischemic changes in the anterior leads", "anterior ischemia"),
        "ANEUR": (
            "ST-T changes compatible with a ventricular aneurysm",
            "persistent ST elevation as in ventricular aneurysm",
        ),
        "LOWT": ("low T waves", "low amplitude T waves", "flattened T waves"),
        "INVT": ("inverted T waves", "T wave inversion"),
        "TAB_": ("T wave abnormality", "abnormal T waves"),
        # other forms
        "ABQRS": ("abnormal QRS complex", "abnormal QRS morphology"),
        "QWAVE": ("Q waves", "pathological Q waves"),
        "LVOLT": ("low QRS voltages", "low voltage in the frontal and horizontal leads"),
        "HVOLT": ("high QRS voltage", "high voltage of the QRS complex"),
        "NORM": ("normal ECG",),
    }
)

_POSSIBLE = ("possible {}", "{}, possible", "cannot rule out {}")
_PROBABLE = ("probable {}", "{}, probable", "findings consistent with {}")
_PRESENT = ("{}", "{}", "there is evidence of {}")
_ONLY_NORMAL = ("normal ECG", "ECG within normal limits", "no abnormality is seen")
_ELSE_NORMAL = ("otherwise normal ECG", "otherwise within normal limits", "no other abnormality")
_NORMAL_MAYBE = ("otherwise probably normal ECG", "borderline ECG", "probably still normal")
_ABNORMAL = ("abnormal ECG", "the ECG is abnormal", "")
_KIND_ORDER = {"rhythm": 0, "diagnostic": 1, "form": 2}


def report_from_statements(
    statements: Iterable[tuple[str, float]], *, heart_rate_bpm: float | None = None, seed: int = 0
) -> str:
    """Write statements as a short English report.

    Rhythm comes first, then diagnoses, then form. PTB-XL's likelihood becomes a hedge: up to 50 "possible", below
    100 "probable"; 100, and 0 (unknown), are said plainly. `NORM` becomes the closing sentence.

    Args:
        statements: (SCP code, likelihood in percent) pairs, as in a manifest.
        heart_rate_bpm: ventricular rate to mention with the rhythm; None says nothing about it.
        seed: which of the phrasings; the same seed and statements always give the same text.

    Returns:
        One to several sentences; "No statement was made." for no statements.

    Raises:
        EcgChatError: a code is not one of PTB-XL's.
    """
    ordered = sorted(dict(statements).items(), key=lambda item: (_order(item[0]), -item[1], item[0]))
    draw = random.Random(f"report {seed}")  # seeded by text: the same on every platform
    sentences: list[str] = []
    for code, likelihood in ordered:
        if code == "NORM":
            continue
        phrase = draw.choice(PHRASES[code])
        rhythm = get_statement(code).kinds == ("rhythm",)
        if rhythm and heart_rate_bpm is not None and not sentences:
            rate = f"{heart_rate_bpm:.0f}"
            phrase += draw.choice(
                (f" at {rate} bpm", f", rate {rate} bpm", f" with a ventricular rate of {rate} per minute")
            )
            sentences.append(phrase)
        elif rhythm:
            sentences.append(phrase)
        else:
            sentences.append(_hedged(phrase, likelihood, draw))
    sentences.append(_verdict(dict(ordered), draw))
    text = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence)
    return text or "No statement was made."


def _order(code: str) -> int:
    kinds = get_statement(code).kinds
    return min(_KIND_ORDER[kind] for kind in kinds)


def _hedged(phrase: str, likelihood: float, draw: random.Random) -> str:
    if 0 < likelihood <= 50:
        return draw.choice(_POSSIBLE).format(phrase)
    if 0 < likelihood < 100:
        return draw.choice(_PROBABLE).format(phrase)
    return draw.choice(_PRESENT).format(phrase)


def _verdict(likelihoods: dict[str, float], draw: random.Random) -> str:
    findings = [code for code in likelihoods if code not in ("NORM", "SR")]
    if "NORM" in likelihoods:
        if 0 < likelihoods["NORM"] <= 50:
            return draw.choice(_NORMAL_MAYBE)
        return draw.choice(_ELSE_NORMAL if findings else _ONLY_NORMAL)
    diagnostic = any(get_statement(code).superclass for code in findings)
    return draw.choice(_ABNORMAL) if diagnostic else ""


# Abbreviations, each matched as a whole word and never inside one: "mi" is an infarction, "minimal" is not.
ABBREVIATIONS: Mapping[str, str] = MappingProxyType(
    {
        "af": "atrial fibrillation",
        "afib": "atrial fibrillation",
        "aflt": "atrial flutter",
        "avb": "AV block",
        "bbb": "bundle branch block",
        "ivcd": "intraventricular conduction delay",
        "lad": "left axis deviation",
        "lae": "left atrial enlargement",
        "lafb": "left anterior fascicular block",
        "lbbb": "left bundle branch block",
        "lpfb": "left posterior fascicular block",
        "lvh": "left ventricular hypertrophy",
        "mi": "myocardial infarction",
        "nsr": "normal sinus rhythm",
        "pac": "premature atrial contraction",
        "pacs": "premature atrial contractions",
        "pvc": "premature ventricular contraction",
        "pvcs": "premature ventricular contractions",
        "rad": "right axis deviation",
        "rae": "right atrial enlargement",
        "rbbb": "right bundle branch block",
        "rvh": "right ventricular hypertrophy",
        "svt": "supraventricular tachycardia",
        "vt": "ventricular tachycardia",
        "wpw": "Wolff-Parkinson-White",
    }
)

# Phrases of the recorder that say nothing about the ECG.
_BOILERPLATE = re.compile(
    r"\b(?:unconfirmed report|unbest[äÄ]tigter bericht|edit without knowledge|report made without knowing patient data"
    r"|confirmed by|compared to previous tracing|all measurements are approximate)\b[.:]?",
    re.IGNORECASE,
)
_RECORDER_VERSION = re.compile(r"(?<![\w.])\d\.\d{2}(?=\s*$)")  # "4.46" at the end of PTB-XL's machine reports
_WORD = re.compile(r"[^\W\d_]+")
_UMLAUTS = str.maketrans("ÄÖÜ", "äöü")


def clean_report(text: str) -> str:
    """Tidy a report word by word: abbreviations written out, recorder boilerplate removed, spaces and stops in order.

    Abbreviations are replaced only where they stand as whole words; "minimal" and "limb" keep their "mi" and "lim".
    Cleaning twice gives the same text. Numbers are left alone, except the recorder's version number at the end.

    Args:
        text: a report in any case.

    Returns:
        The report as sentences that start with a capital and end with a full stop; "" if nothing is left.
    """
    text = _BOILERPLATE.sub(" ", _mend_umlauts(text))
    text = _RECORDER_VERSION.sub(" ", text.strip())
    text = _WORD.sub(lambda word: ABBREVIATIONS.get(word[0].lower(), word[0]), text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([.,;:])", r"\1", text)
    text = re.sub(r"([.,;:])(?:\s*[.,;:])+", r"\1", text)
    sentences = [part.strip(" ,;:") for part in re.split(r"\.(?:\s+|$)", text)]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in sentences if part)


def _mend_umlauts(text: str) -> str:
    """Lower the umlauts that PTB-XL's own lower-casing left in capitals: `ischÄmie` → `ischämie`."""
    return re.sub(r"(?<=[a-zß])[ÄÖÜ]|[ÄÖÜ](?=[a-zß])", lambda letter: letter[0].translate(_UMLAUTS), text)
