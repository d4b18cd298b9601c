"""Report texts: English sentences from SCP statements, and cleaning of existing reports word by word.

Sentences are drawn from a bank of phrasings, so the same statements read differently from record to record, and the
same seed always reads the same. It doesn't translate and doesn't interpret a signal. Taught in: 02 §4.
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
        "clbbb": "complete left bundle branch block",
        "crbbb": "complete right bundle branch block",
        "ilbbb": "incomplete left bundle branch block",
        "irbbb": "incomplete right bundle branch block",
        "ivcb": "intraventricular conduction block",
        "ivcd": "intraventricular conduction delay",
        "lad": "left axis deviation",
        "lae": "left atrial enlargement",
        "lafb": "left anterior fascicular block",
        "lahb": "left anterior hemiblock",
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
        "rvr": "rapid ventricular response",
        "svt": "supraventricular tachycardia",
        "vt": "ventricular tachycardia",
        "wpw": "Wolff-Parkinson-White",
    }
)

# German ones, written out in German reports only, with their full stop.
GERMAN_ABBREVIATIONS: Mapping[str, str] = MappingProxyType(
    {
        "abl": "Ableitungen",
        "intraventr": "intraventrikuläre",
        "mögl": "möglich",
        "neg": "negativ",
        "path": "pathologisch",
        "sves": "supraventrikuläre Extrasystolen",
        "unbest": "unbestimmt",
        "vd": "Verdacht",
        "ves": "ventrikuläre Extrasystolen",
        "vhf": "Vorhofflimmern",
    }
)

# Words that tell a language; "normal", "block" and "ekg" are shared, so they aren't here.
_LANGUAGE_WORDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "de": frozenset(
            [
                "sinusrhythmus",
                "sinusbradykardie",
                "sinustachykardie",
                "sinusarrhythmie",
                "lagetyp",
                "linkstyp",
                "rechtstyp",
                "steiltyp",
                "seitenlagetyp",
                "linkslagetyp",
                "normales",
                "normaler",
                "abnorm",
                "abnormes",
                "abnormales",
                "infarkt",
                "inferiorer",
                "anteriorer",
                "anteroseptaler",
                "lateraler",
                "ischämie",
                "ischamie",
                "ableitungen",
                "wahrscheinlich",
                "möglich",
                "verdacht",
                "auf",
                "oder",
                "und",
                "nicht",
                "für",
                "mit",
                "bei",
                "nach",
                "des",
                "alters",
                "alter",
                "sonst",
                "schrittmacher",
                "vorhofflimmern",
                "vorhofflattern",
                "linksschenkelblock",
                "rechtsschenkelblock",
                "schenkelblock",
                "linkshypertrophie",
                "rechtshypertrophie",
                "niederspannung",
                "ventrikuläre",
                "supraventrikuläre",
                "extrasystole",
                "extrasystolen",
                "leitungsstörung",
                "unbestätigter",
                "bericht",
                "unbest",
                "pathologisches",
                "path",
                "vd",
                "senkung",
                "hebung",
                "verlängerung",
                "keine",
                "arrhythmie",
                "ueberdrehter",
                "überdrehter",
                "linksbelastung",
                "unspezifisches",
                "unspezifische",
                "unvollständiger",
                "tachykardes",
                "grenzbefund",
                "intraventr",
                "grades",
                "rhythmus",
            ]
        ),
        "sv": frozenset(
            [
                "sinusrytm",
                "sinusbradykardi",
                "sinustakykardi",
                "sinusarytmi",
                "normalt",
                "vänster",
                "höger",
                "vänstersidigt",
                "högersidigt",
                "hög",
                "förmaksflimmer",
                "förmak",
                "kammarhypertrofi",
                "kammare",
                "skänkelblock",
                "ej",
                "eller",
                "vid",
                "såsom",
                "övervägas",
                "bör",
                "ålder",
                "ospecifik",
                "ospecifika",
                "ospecifikt",
                "förändring",
                "avvikande",
                "förlopp",
                "sannolikt",
                "misstänkt",
                "eljest",
                "låga",
                "amplituder",
                "extremitetsavledningarna",
                "förlängd",
                "sänkning",
                "myokardskada",
                "hjärtinfarkt",
                "axel",
                "med",
                "och",
            ]
        ),
        "en": frozenset(
            [
                "sinus",
                "rhythm",
                "the",
                "with",
                "without",
                "ecg",
                "waves",
                "wave",
                "is",
                "are",
                "left",
                "right",
                "of",
                "and",
                "or",
                "for",
                "no",
                "not",
                "non",
                "specific",
                "atrial",
                "ventricular",
                "bradycardia",
                "tachycardia",
                "arrhythmia",
                "infarct",
                "infarction",
                "abnormal",
                "abnormality",
                "axis",
                "deviation",
                "bundle",
                "branch",
                "premature",
                "contraction",
                "contractions",
                "complexes",
                "flutter",
                "fibrillation",
                "due",
                "may",
                "otherwise",
                "possible",
                "probable",
                "consistent",
                "suggest",
                "suggesting",
                "cannot",
                "leads",
                "limb",
                "voltages",
                "prolonged",
                "interval",
                "old",
                "changes",
                "this",
                "paced",
                "pacemaker",
                "hypertrophy",
                "ischemia",
                "ischaemia",
                "degree",
                "definite",
                "pathology",
                "trace",
                "requested",
                "within",
                "limits",
            ]
        ),
    }
)

# Phrases of the recorder and of the annotation's history, which say nothing about the ECG.
_BOILERPLATE = re.compile(
    r"\b(?:unconfirmed report|unconfirmed|unbestätigter bericht|edit without knowledge"
    r"|report made without knowing (?:the )?patient(?:'s)? (?:data|sex)|confirmed by|compared to previous tracing"
    r"|all measurements are approximate|trace only requested)\b[.:]?",
    re.IGNORECASE,
)
_EDIT_REMARK = re.compile(r"\bedit:\s.*$", re.IGNORECASE | re.DOTALL)  # PTB-XL: "Edit: NORM 80, (NORM 100)"
_DECORATION = re.compile(r"[-*]{3,}")
_RECORDER_VERSION = re.compile(r"(?<![\w.,])4\.46(?=[\s.]*$)")  # at the end of PTB-XL's machine reports; no measurement
_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?!\w)")
_ARTERY = re.compile(r"(?<!\w)lad(?=\s+(?:occlusion|lesion|stenosis|territory|artery)\b)", re.IGNORECASE)
_UMLAUTS = str.maketrans("ÄÖÜ", "äöü")


def language_of(text: str) -> str:
    """Tell the language of a report by its words: `de`, `en` or `sv`; "" where no word tells or two tie.

    The reports of PTB-XL are German, English and, for a few hundred records, Swedish.
    """
    words = _WORD.findall(text.lower())
    counts = sorted(
        ((sum(word in known for word in words), language) for language, known in _LANGUAGE_WORDS.items()), reverse=True
    )
    return counts[0][1] if counts[0][0] > counts[1][0] else ""


def clean_report(text: str) -> str:
    """Tidy a report word by word: abbreviations written out, recorder boilerplate removed, spaces and stops in order.

    Abbreviations are replaced only where they stand as whole words; "minimal" and "limb" keep their "mi" and "lim", and
    the artery in "LAD occlusion" is no axis. German abbreviations are written out in German texts only. Negations,
    hedges and numbers are left alone, except the recorder's version number at the end. Long words in capitals are
    lowered. Cleaning twice gives the same text.

    Args:
        text: a report in any case.

    Returns:
        The report as sentences that start with a capital and end with a full stop; "" if nothing is left.
    """
    german = language_of(text) == "de"
    text = _BOILERPLATE.sub(" ", _EDIT_REMARK.sub(" ", _mend_umlauts(text)))
    text = _RECORDER_VERSION.sub(" ", _DECORATION.sub(" ", text).strip())
    text = _ARTERY.sub("left anterior descending", text)
    if german:
        text = re.sub(r"(?<!\w)([^\W\d_]+)(?!\w)(\.?)", lambda word: _in_german(word[1], word[2]), text)
    text = _WORD.sub(lambda word: _written_out(word[0]), text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([.,;:])", r"\1", text)
    text = re.sub(r"([.,;:])(?:\s*[.,;:])+", r"\1", text)
    sentences = [part.strip(" ,;:") for part in re.split(r"\.(?:\s+|$)", text)]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in sentences if part)


def _written_out(word: str) -> str:
    long = ABBREVIATIONS.get(word.lower())
    if long is not None:
        return long
    return word.lower() if len(word) >= 5 and word.isupper() else word


def _in_german(word: str, stop: str) -> str:
    long = GERMAN_ABBREVIATIONS.get(word.lower())
    return word + stop if long is None else long


def _mend_umlauts(text: str) -> str:
    """Lower the umlauts that PTB-XL's own lower-casing left in capitals: `ischÄmie` → `ischämie`."""
    return re.sub(r"(?<=[a-zß])[ÄÖÜ]|[ÄÖÜ](?=[a-zß])", lambda letter: letter[0].translate(_UMLAUTS), text)
