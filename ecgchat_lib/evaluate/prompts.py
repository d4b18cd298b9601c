"""Prompts: every class of the five label sets in a reader's words, and the scores that these words give an ECG.

The words are those of the report writer (`datasets.reports.PHRASES`) and synonyms of the field; a class of several
statements is said by its statements' words. It also reads CKEPE, the prompts that a language model wrote for MERL, to
compare with; they are never the default, because some say the wrong thing (`CKEPE_ERRORS`). Taught in: 08 §4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ecgchat_lib.datasets.labels import STATEMENTS, get_label_set, get_statement, read_merl_names
from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.errors import MissingPartError, ParameterError, RecordError

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → (m, dim) embeddings of length 1: `lambda texts: embed_texts(texts, model).numpy()`."""

# What the words are put into, as reports have it; the embeddings are averaged, so that no single wording decides.
TEMPLATES: tuple[str, ...] = ("{}", "there is evidence of {}")

# Statement → other words for the same finding. What is only often seen with it, or a part of it, doesn't belong here.
SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "NORM": ("normal electrocardiogram", "ECG within normal limits", "no abnormality is seen"),
        "NDT": ("non-diagnostic T wave changes",),
        "NST_": ("non-specific ST segment changes", "non-specific ST abnormality"),
        "DIG": ("digoxin effect", "scooped ST depression of digitalis"),
        "LNGQT": ("long QTc", "prolonged QTc interval"),
        "IMI": ("inferior infarct",),
        "ASMI": ("anteroseptal infarct",),
        "AMI": ("anterior infarct",),
        "ALMI": ("anterolateral infarction",),
        "LMI": ("lateral wall infarction",),
        "ILMI": ("inferolateral infarction",),
        "IPMI": ("inferoposterior infarction",),
        "IPLMI": ("inferoposterolateral infarction",),
        "PMI": ("posterior wall infarction",),
        "LVH": ("LVH",),
        "RVH": ("RVH",),
        "SEHYP": ("hypertrophy of the interventricular septum",),
        "LAO/LAE": ("left atrial abnormality", "P mitrale"),
        "RAO/RAE": ("right atrial abnormality", "P pulmonale"),
        "1AVB": ("first-degree heart block",),
        "2AVB": ("second-degree heart block", "second degree AV block, Mobitz or Wenckebach"),
        "3AVB": ("complete heart block", "AV dissociation in third degree AV block"),
        "CLBBB": ("LBBB",),
        "CRBBB": ("RBBB",),
        "ILBBB": ("incomplete LBBB",),
        "IRBBB": ("incomplete RBBB",),
        "IVCD": ("non-specific intraventricular block", "unspecific QRS widening"),
        "LAFB": ("left anterior fascicular hemiblock",),
        "LPFB": ("left posterior fascicular hemiblock",),
        "WPW": ("delta waves and short PR interval, preexcitation",),
        "ISC_": ("ischemic ST-T changes",),
        "ISCAL": ("ischemic ST-T changes in the anterolateral leads",),
        "ISCIN": ("ischemic ST-T changes in the inferior leads",),
        "ISCIL": ("ischemic ST-T changes in the inferolateral leads",),
        "ISCAS": ("ischemic ST-T changes in the anteroseptal leads",),
        "ISCLA": ("ischemic ST-T changes in the lateral leads",),
        "ISCAN": ("ischemic ST-T changes in the anterior leads",),
        "EL": ("ST-T changes of electrolyte disturbance",),
        "PVC": ("ventricular premature beats", "ventricular extrasystoles"),
        "PAC": ("atrial premature beats", "supraventricular extrasystoles"),
        "PRC(S)": ("premature beats", "extrasystoles"),
        "STD_": ("ST depression",),
        "STE_": ("ST elevation",),
        "QWAVE": ("abnormal Q waves",),
        "LOWT": ("flat T waves",),
        "INVT": ("negative T waves",),
        "LPR": ("PR prolongation",),
        "LVOLT": ("low voltage",),
        "HVOLT": ("high QRS amplitudes",),
        "SR": ("regular sinus rhythm",),
        "AFIB": ("irregularly irregular rhythm without P waves",),
        "AFLT": ("sawtooth flutter waves",),
        "STACH": ("sinus rhythm with a rate above 100 per minute",),
        "SBRAD": ("sinus rhythm with a rate below 60 per minute",),
        "PACE": ("electronic ventricular pacemaker", "pacemaker spikes"),
        "SVTAC": ("regular narrow complex tachycardia",),
        "BIGU": ("every second beat is premature, bigeminy",),
        "TRIGU": ("every third beat is premature, trigeminy",),
    }
)

# Classes of PTB-XL that span several statements, in words of their own.
GENERAL: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "super": {
            "MI": ("myocardial infarction", "pathological Q waves of an old infarction"),
            "STTC": ("ST-T changes", "abnormal repolarization"),
            "CD": ("conduction disturbance",),
            "HYP": ("hypertrophy", "ventricular hypertrophy or atrial enlargement"),
        },
        "sub": {"_AVB": ("atrioventricular block",), "STTC": ("ST-T changes",)},
    }
)


def statement_words(code: str) -> tuple[str, ...]:
    """Return the ways to say one statement: the report writer's phrases, then synonyms, each once.

    Raises:
        EcgChatError: the code is not one of PTB-XL's.
    """
    get_statement(code)
    return tuple(dict.fromkeys((*PHRASES[code], *SYNONYMS.get(code, ()))))


def grouped_prompts(label_set: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return class → finding → its words; a class of one statement has one finding, a superclass has many.

    A finding is a statement's code, or "" for the class's own name.

    Raises:
        EcgChatError: the label set is unknown.
    """
    labels = get_label_set(label_set)
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    for one in labels.classes:
        general = GENERAL.get(label_set, {}).get(one)
        codes = [code for code in STATEMENTS if labels.class_of.get(code) == one]
        groups[one] = ({"": general} if general else {}) | {code: statement_words(code) for code in codes}
    return groups


def class_prompts(label_set: str) -> dict[str, tuple[str, ...]]:
    """Return class → every way to say it, without templates, each once.

    Args:
        label_set: `super`, `sub`, `form`, `rhythm` or `cpsc2018`.

    Raises:
        EcgChatError: the label set is unknown.
    """
    groups = grouped_prompts(label_set)
    return {one: tuple(dict.fromkeys(w for words in found.values() for w in words)) for one, found in groups.items()}


# The question "rather this than normal?" takes out that some ECGs are near to every text. It helps where the other
# classes are what a normal ECG hasn't; a rhythm or a form goes together with a normal ECG often enough that it harms.
# Chosen on PTB-XL's training folds and the choosing half of fold 9.
AGAINST_NORMAL: tuple[str, ...] = ("super", "sub")

SHARPNESS = 14.0  # of the soft maximum over a class's findings: about 1/0.07, where the temperature starts in training


def label_set_scores(
    ecg: np.ndarray, embed: Embed, label_set: str, prompts: Mapping[str, Sequence[str]] | None = None
) -> np.ndarray:
    """Return zero-shot scores (n, classes) of a label set, in its order of classes.

    A finding's vector is the mean over its words and `TEMPLATES`, brought to length 1. A class's score is the soft
    maximum, log-mean-exp, of its findings' cosines: a left bundle branch block is a conduction disturbance without
    being near to all of them. For `AGAINST_NORMAL` the score of normal is subtracted from all others.

    Args:
        ecg: (n, dim) embeddings of length 1.
        embed: texts → (m, dim) embeddings of length 1; it is called once.
        label_set: `super`, `sub`, `form`, `rhythm` or `cpsc2018`.
        prompts: class → texts that stand for it instead of the course's own, such as `ckepe_prompts`.

    Raises:
        EcgChatError: the label set is unknown.
        ParameterError: the prompts lack a class, or shapes don't fit.
    """
    groups = grouped_prompts(label_set)
    if prompts is not None:
        missing = [one for one in groups if not prompts.get(one)]
        if missing:
            raise ParameterError(f"the classes {', '.join(missing)} of {label_set!r} have no prompt")
        groups = {one: {"": tuple(prompts[one])} for one in groups}
    vectors = finding_vectors(embed, groups)
    ecg = np.asarray(ecg, dtype=np.float64)
    dim = next(iter(vectors.values())).shape[1]
    if ecg.ndim != 2 or ecg.shape[1] != dim:
        raise ParameterError(f"ECG embeddings {ecg.shape} don't fit text embeddings of width {dim}")
    scores = np.stack([_soft_maximum(ecg @ found.T) for found in vectors.values()], axis=1)
    classes = list(groups)
    if label_set in AGAINST_NORMAL:
        normal = classes.index("NORM")
        scores[:, np.arange(len(classes)) != normal] -= scores[:, [normal]]
    return scores


def finding_vectors(embed: Embed, groups: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, np.ndarray]:
    """Return class → (findings, dim): each finding's mean vector over words and templates, of length 1."""
    prompts = {
        (one, finding): [template.format(word) for word in words for template in TEMPLATES]
        for one, findings in groups.items()
        for finding, words in findings.items()
    }
    texts = list(dict.fromkeys(text for group in prompts.values() for text in group))
    embedded = np.asarray(embed(texts), dtype=np.float64)
    if embedded.ndim != 2 or len(embedded) != len(texts):
        raise ParameterError(f"embed made {embedded.shape} of {len(texts)} texts; expected one row per text")
    place = {text: row for row, text in enumerate(texts)}
    vectors: dict[str, list[np.ndarray]] = {}
    for (one, _), group in prompts.items():
        mean = embedded[[place[text] for text in group]].mean(axis=0)
        vectors.setdefault(one, []).append(mean / np.linalg.norm(mean))
    return {one: np.stack(found) for one, found in vectors.items()}


def _soft_maximum(cosines: np.ndarray) -> np.ndarray:
    """(n, findings) → (n,): log-mean-exp; between the mean and the maximum."""
    return np.asarray(np.log(np.exp(SHARPNESS * cosines).mean(axis=1)) / SHARPNESS)


CKEPE_SHA256 = "468b9b23220bbc6190618db6e0138ae34d95097456214a1b12cd0d1ad30e233c"

# What a cardiologist would strike out of CKEPE; the course's own prompts say none of it.
CKEPE_ERRORS: Mapping[str, str] = MappingProxyType(
    {
        "NORM": "sinus tachycardia and sinus bradycardia are no normal ECGs, and sinus rhythm goes with any diagnosis",
        "LAFB": "says left bundle branch block, which is another finding",
        "CLBBB": "names fascicular and bifascicular blocks, which are other findings",
        "CRBBB": "says incomplete right bundle branch block, which is a class of its own",
        "ISCAL": "says anteroseptal myocardial infarction, and 'in anterolateral leads' without a finding",
        "INJAS": "says ischemia where the statement is injury",
        "ILBBB": "names fascicular and bifascicular blocks, which are other findings",
        "SR": "names sinus tachycardia and bradycardia, which are classes of their own, and node dysfunction",
        "STACH": "names supraventricular, atrial and junctional tachycardia, none of which is sinus tachycardia",
        "SBRAD": "names atrial fibrillation and flutter, which exclude it",
        "BIGU": "holds the language model's chat: 'Let me know if this meets your requirements!'",
    }
)


def read_ckepe(path: Path) -> dict[str, str]:
    """Read CKEPE's file, key → prompt, as published with MERL (MIT); the course doesn't ship it.

    Args:
        path: `CKEPE_prompt.json`, an object whose values are texts.

    Raises:
        MissingPartError: there is no such file.
        RecordError: it isn't such an object.

    Source: Liu et al. 2024, arXiv 2403.06659. The file compared with has `CKEPE_SHA256`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPartError("CKEPE prompts", f"no file at {path}", "Get CKEPE_prompt.json from MERL's repository.")
    remedy = "Expected an object of class names and prompts, as published with MERL."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RecordError(path, f"not JSON: {error}", remedy) from None
    if not isinstance(found, dict) or not found:
        raise RecordError(path, f"holds a {type(found).__name__} of {len(found) if found else 0} items", remedy)
    wrong = [key for key, text in found.items() if not isinstance(text, str) or not text.strip()]
    if wrong:
        raise RecordError(path, f"the prompts of {', '.join(map(repr, wrong[:5]))} are no texts", remedy)
    return found


def ckepe_prompts(path: Path, label_set: str) -> dict[str, tuple[str, ...]]:
    """Return class → CKEPE's prompt, whole, in this project's class names, for `label_set_scores`.

    Raises:
        EcgChatError: the label set is unknown.
        RecordError: a class of the set has no prompt in the file; else as `read_ckepe`.
    """
    prompts, names = read_ckepe(path), read_merl_names(label_set)
    missing = [merl for merl in names if merl not in prompts]
    if missing:
        raise RecordError(path, f"no prompt for {', '.join(missing)}", f"Expected every class of {label_set!r}.")
    by_class = {here: (prompts[merl],) for merl, here in names.items()}
    return {one: by_class[one] for one in get_label_set(label_set).classes}
