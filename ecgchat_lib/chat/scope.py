"""Which questions a chat about ECGs answers: about the recording, about ECGs in general, or not at all, and why not.

Plain rules go first, where they are surer than a fit: marks of a chat template, orders to change the rules (also in
disguise), emergencies, other languages. Then a logistic regression on MiniLM's sentence embeddings tells the kind, with
the names of findings masked, so that it learns the form of a question and no finding; a name that the model was never
taught makes a question about the recording one that it can't answer. It is a filter and no proof against every attack:
`benchmarks/injections.py` counts what gets through. Taught in: 13 §4.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import difflib
import hashlib
import os
import re
import tempfile
import threading
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.instruct.findings import BY_NAME, FINDINGS
from ecgchat_lib.instruct.vocabulary import ABBREVIATIONS, GROUPS, SYNONYMS
from ecgchat_lib.instruct.wording import without_article
from ecgchat_lib.paths import cache_folder, data_folder

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

KINDS = ("ecg", "knowledge", "unknown_finding", "outside", "instruction")
FITTED = ("ecg", "knowledge", "outside", "instruction")  # an unknown finding is "ecg" with a name that isn't taught
SPLITS = ("train", "validation", "test")
FORMAT = "scope-1"  # of the cached embeddings
MAX_BYTES, MAX_QUESTION = 1_000_000, 500  # of the file of questions, and characters of one in it
MASK = "atrial fibrillation"  # stands for every finding's name before the regression reads a question
LONGEST = 6000  # characters of a question
CHUNK, MOST_CHUNKS = 50, 24  # words read at a time, and how many such parts of a long text
SENTENCE = 3  # words from which a sentence is also read by itself

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "outside": "I can only talk about the ECG at hand and about ECGs in general. For anything else, such as "
        "treatment, other tests or the outlook, please ask a physician.",
        "emergency": "If this is happening now, call the emergency number at once (112 in Europe, 911 in North "
        "America, 999 in Britain). I am a teaching model and can't help in an emergency.",
        "instruction": "This reads like an attempt to change how I answer, which I don't follow. "
        "Please ask what you want to know about the ECG.",
        "unknown_finding": "I was never taught to see this in a recording: {it}. So I can neither confirm it nor rule "
        "it out. I can say in general what it looks like.",
        "language": "I understand English only. Please ask in English.",
        "long": f"The question is too long, expected at most {LONGEST:,} characters. Please ask shorter.",
        "empty": "The question is empty. Please ask something such as 'What is the heart rhythm?'.",
    }
)


@dataclass(frozen=True)
class Scope:
    """What a question is about.

    Attributes:
        kind: one of `KINDS`.
        reason: a sentence for the user that says why there is no answer; "" for "ecg" and "knowledge".
        probability: of the kind, by the regression; 1 where a rule decided.
        question: what was asked; for a bare "Why?" the question that it goes back to.
    """

    kind: str
    reason: str
    probability: float
    question: str = field(default="", compare=False)


@dataclass(frozen=True)
class Question:
    """A question of the collection: its text, its kind, the question that it follows ("" if none), and its split."""

    text: str
    kind: str
    after: str
    split: str


# ---- the collection of questions ------------------------------------------------------------------------------------


def split_of(text: str) -> str:
    """Return a text's split by its sha256: a fifth for validation, a fifth for the test, the rest for training."""
    place = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 5
    return {0: "test", 1: "validation"}.get(place, "train")


def read_questions(path: Path | None = None) -> tuple[Question, ...]:
    """Read the collection of questions, `data/chat/questions.yml` if no other is named.

    Raises:
        EcgChatError: the file can't be read, or an item in it is strange; the message names it.
    """
    import yaml

    path = path or data_folder() / "chat" / "questions.yml"
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise EcgChatError(f"{path}: {len(data)} bytes, expected {MAX_BYTES} at most. Split the file")
        content = yaml.safe_load(data.decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise EcgChatError(f"{path}: can't be read ({type(error).__name__}). Restore it from the project") from None
    if not isinstance(content, dict) or set(content) != set(KINDS):
        raise EcgChatError(f"{path}: expected a list of questions for each of {', '.join(KINDS)}")
    made = [_question(item, kind, path) for kind in KINDS for item in _listed(content[kind], kind, path)]
    keys = [(item.text, item.after) for item in made]
    twice = next((text for text, after in keys if keys.count((text, after)) > 1), None)
    if twice is not None:
        raise EcgChatError(f"{path}: holds {twice!r} twice. Remove one")
    return tuple(made)


def _listed(content: Any, kind: str, path: Path) -> list[Any]:
    if not isinstance(content, list) or not content:
        raise EcgChatError(f"{path}: {kind}: found {type(content).__name__}, expected a list of questions")
    return content


def _question(item: Any, kind: str, path: Path) -> Question:
    fields = {"question": item} if isinstance(item, str) else item
    if not isinstance(fields, dict) or not {"question"} <= set(fields) <= {"question", "after"}:
        raise EcgChatError(f"{path}: {kind}: found {item!r:.60}, expected a text, or question and after")
    text, after = fields["question"], fields.get("after", "")
    for found in (text, after):
        if not isinstance(found, str) or len(found) > MAX_QUESTION:
            raise EcgChatError(
                f"{path}: {kind}: found {found!r:.60}, expected a text of at most {MAX_QUESTION} letters"
            )
    if not text.strip():
        raise EcgChatError(f"{path}: {kind}: holds an empty question. Remove it")
    return Question(text, kind, after, split_of(text + after))


# ---- what findings are called ---------------------------------------------------------------------------------------

TAUGHT = frozenset(code for finding in FINDINGS for code in finding.codes)
# Answered all the same: what is normal is taught as a verdict, and a long PR interval is measured.
_BESIDE = frozenset({"NORM", "LPR"})
_MEASURED = (
    *("axis deviation", "left axis deviation", "right axis deviation", "normal axis", "extreme axis deviation"),
    *("bradycardia", "tachycardia", "arrhythmia", "irregular rhythm", "short pr interval", "prolonged pr interval"),
    *("wide qrs", "wide qrs complex", "short qt interval", "normal ecg"),
)
_COVERED = ("prior infarction", "old infarction", "old myocardial infarction", "nonspecific st t changes", "st changes")
_SHORT: Mapping[str, str] = MappingProxyType(
    {"AF": MASK, "af": MASK, "MI": "infarction", "mi": "infarction", "VT": "v tach", "vt": "v tach", "VF": "v fib"}
    | {"vf": "v fib", "PE": "pulmonary embolism", "HCM": "hypertrophic cardiomyopathy"}
)
# Names that neither the statements, the vocabulary nor the knowledge base's titles hold, as people write them.
_FURTHER = (
    *("lung embolism", "high potassium", "low potassium", "high calcium", "low calcium", "v fib", "vfib", "v tach"),
    *("enlarged left atrium", "enlarged right atrium", "mobitz ii", "mobitz i", "av dissociation", "takotsubo"),
    *("cardiac amyloidosis", "pericardial effusion", "tamponade", "dextrocardia", "hypothermia", "avnrt", "avrt"),
    *("sinus arrest", "sinoatrial block", "wandering atrial pacemaker", "idioventricular rhythm", "u wave"),
    *("right ventricular strain", "digoxin", "aneurysm", "bifascicular block", "trifascicular block", "arvc"),
    *("wellens", "wolff parkinson white", "de winter", "sgarbossa", "potassium", "calcium", "subendocardial injury"),
    *("atrioventricular reentrant tachycardia", "reentrant tachycardia", "s1q3t3", "long qt syndrome", "amyloidosis"),
)
_ENGLISH = frozenset({"mat", "pat", "lad", "rad", "arm", "nor", "not", "ear", "era", "ant", "inf", "lat", "sad", "cad"})
_BRITISH = (("aemi", "emi"), ("isation", "ization"), ("haem", "hem"), ("oedema", "edema"), ("tumour", "tumor"))
_HISTORY = re.compile(
    r"\b(?:history of|known|previous|prior|has|have|had|suffer(?:s|ing)? from|after|because of|despite|treated for|"
    r"with)\s+(?:an?\s+|the\s+|known\s+|chronic\s+|\w+ and )*$"
)
_TOPIC = re.compile(r"\b(?:rhythm|rate|axis|regular|intervals?|pr|qrs|qtc?|normal)\b")
_ASKING = re.compile(
    r"^\W*(?:and |or |but |so )?(?:do|does|did|is|are|was|were|can|could|would|will|any|has|have|what|which|how|why)\b"
)


@dataclass(frozen=True)
class _Name:
    """A finding's name in a text: where, what the finding is called, and whether the model was taught it."""

    start: int
    stop: int
    title: str
    taught: bool


@cache
def _names() -> Mapping[str, tuple[str, bool]]:
    """Return how findings are called: plain lower-case name → its title, and whether the model was taught it."""
    made: dict[str, tuple[str, bool]] = {}

    def add(texts: Iterable[str], title: str, taught: bool) -> None:
        for text in texts:
            made.setdefault(_plain(without_article(text)), (title, taught))

    known = TAUGHT | _BESIDE
    for finding in FINDINGS:
        add((without_article(finding.phrase), *SYNONYMS[finding.name]), finding.phrase, True)
    add(_MEASURED, "", True)
    add(_COVERED, "a finding", True)
    for finding, texts in GROUPS:
        add(texts, finding.name, bool(finding.codes & known))
    for code in (code for code in PHRASES if code != "NORM"):
        texts = (*(text.split(", ")[-1] for text in PHRASES[code]), STATEMENTS[code].description)
        add(texts, STATEMENTS[code].description, code in known)
    groups = {group.name: bool(group.codes & known) for group, _ in GROUPS}
    for short, name in ABBREVIATIONS.items():
        taught = name in BY_NAME or groups.get(name, name.upper() in known)
        title = BY_NAME[name].phrase if name in BY_NAME else name
        statement = STATEMENTS.get(name.upper())
        add([short] if len(short) > 2 else [], statement.description if statement else title, taught)
    for title, names in _entries():
        title = "" if any(_plain(name) in _MEASURED for name in names) else title
        add(names, title, any(made.get(_plain(name), ("", False))[1] for name in names))
    for name in _FURTHER:
        add([name], name, False)
    return MappingProxyType(made)


def _entries() -> list[tuple[str, list[str]]]:
    """Return (title, names) of the knowledge base's findings, without the entries on how to record and measure."""
    from ecgchat_lib.knowledge.entries import load_entries

    return [
        (entry.title, [name for name in (entry.title, *entry.aliases) if len(name) > 2])
        for entry in load_entries().values()
        if entry.kind not in ("recording", "measurement")
    ]


def _plain(text: str) -> str:
    """Return a text in small letters with American spelling and blanks for hyphens, so that names are found in it."""
    text = re.sub(r"(?<!\w)[A-Za-z]{2,3}(?!\w)", lambda m: _SHORT.get(m[0], m[0]), text)
    text = re.sub(r"[\s\-‐-―/]+", " ", text.lower().replace("’", "'"))
    for british, american in _BRITISH:
        text = text.replace(british, american)
    text = re.sub(r"\b(what|who|where|how|that|it|there|he|she|here)'?s\b", r"\1 is", text)
    return re.sub(r"'s\b|'(?=\s|$)", "", text).strip()


@cache
def _name_pattern() -> re.Pattern[str]:
    names = sorted((name for name in _names() if name not in _ENGLISH), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?:es|s)?(?!\w)")


@cache
def _name_words() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the words of names, and the long ones among them, which are told even if they are misspelled."""
    words = frozenset(word for name in _names() for word in name.split())
    return words, tuple(sorted(word for word in words if len(word) > 6 and word.isalpha()))


@cache
def _common_words() -> frozenset[str]:
    return frozenset(word for item in read_questions() if item.split == "train" for word in _plain(item.text).split())


def _respelled(text: str) -> str:
    """Return a plain text with misspelled words of findings' names put right."""
    words, long = _name_words()

    def right(match: re.Match[str]) -> str:
        word = match[0]
        if word in words or word.removesuffix("s") in words:
            return word
        near = difflib.get_close_matches(word, [other for other in long if other[0] == word[0]], 1, 0.86)
        return near[0] if near else word

    return re.sub(r"[a-z]{6,}", right, text)


def _find(plain: str) -> list[_Name]:
    known, found = _names(), []
    for match in _name_pattern().finditer(plain):
        name = next(n for n in (match[0], match[0].removesuffix("s"), match[0].removesuffix("es")) if n in known)
        found.append(_Name(*match.span(), *known[name]))
    return found


def _mask(text: str) -> str:
    """Return a question in plain small letters, with one finding's name in place of each."""
    plain = _respelled(_plain(text))
    for name in reversed(_find(plain)):
        if not name.title:  # "bradycardia", "normal ECG": no finding, but what a question turns on
            continue
        plain = f"{plain[: name.start]}{MASK}{plain[name.stop :]}"
    return re.sub(r"\b(?:recording|tracing|trace|strip|ekg|electrocardiogram)\b", "ecg", plain) or "?"


def unknown_findings(question: str) -> tuple[str, ...]:
    """Return the findings that a question asks about and that the model was never taught, each once, in order.

    What is told about the person ("with known heart failure, ...") isn't asked about.
    """
    sentences = _sentences(question)
    found = []
    for sentence in [one for one in sentences if one.endswith("?")] or sentences:
        clauses = [_respelled(_plain(one)) for one in re.split(r"[,:;–—]\s|\s-\s", sentence)]
        asking = [one for one in clauses if _ASKING.match(one) and (_TOPIC.search(one) or _find(one))]
        for clause in asking or clauses:
            found += [name.title for name in _find(clause) if not name.taught and not _is_told(clause, name, asking)]
    return tuple(dict.fromkeys(found))


def _is_told(clause: str, name: _Name, asking: Sequence[str]) -> bool:
    """Return whether a name stands in a clause as something known of the person."""
    before = clause[: name.start]
    return _HISTORY.search(before) is not None and (not asking or _TOPIC.search(before) is not None)


# ---- rules ----------------------------------------------------------------------------------------------------------

_MARKS = re.compile(  # of chat templates, and the beginnings of lines that only the program writes into a prompt
    r"<\|[^<>|]{0,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<ecg>|</?(?:system|user|assistant)>|"
    r"(?:^|\n|[.!?\"']\s+)\s*#*\s*(?:SYSTEM|System|system|ASSISTANT|Assistant|assistant|USER|Human)\s*:|"
    r"(?:^|\n)\s*(?:Measured|Signs|Knowledge|Similar ECGs?(?: show)?)\s*:"
)
_SPELLED = re.compile(r"(?:(?<!\w)\w[\s.\-_*]+){8,}")  # l e t t e r by letter
_TARGET = (
    r"(?:\binstructions?\b|\brules?\b(?! out)|\bprompts?\b|\bguidelines?\b|\bdirectives?\b|\brestrictions?\b|"
    r"\btold\b|\b(?:every|any)thing (?:above|before)|\bpolic(?:y|ies)\b|\byour (?:\w+ )?filters?\b)"
)
_QUOTE = r"(?:[\"“‘]|(?<!\w)')"  # not the apostrophe of "what's"
_ASSUME = r"\b(?:assum(?:e|ing)|suppos(?:e|ing)|imagin(?:e|ing))\b"
_AS_WISHED = r"\b(?:normal|healthy|artefacts?|artifacts?|wrong)\b"
_RULES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\b(?:ignore|ignoring|disregard|forget|override|overrule|bypass|neglect|drop|skip|violate|break|suspend|"
        rf"set aside|pay no attention to|do not (?:follow|obey)|don't (?:follow|obey)|stop following)\b.{{0,50}}"
        rf"{_TARGET}",
        r"\b(?:ignore|disregard|override|bypass|skip|disable|do not use|don't use|without using|turn off|switch off)\b"
        r".{0,30}\b(?:measure|measured|evidence|checks?|checking|checker|safety|classifier)",
        r"\b(?:ignore|disregard) (?:(?:what(?:ever)?|all of) )?(?:the|this|that|my) tracing\b",
        r"\b(?:system|hidden|secret|initial|original|developer'?s?)\s+(?:prompt|instructions?|messages?|rules|text)\b",
        r"\b(?:reveal|print|show|output|repeat|leak|display|translate|summari[sz]e|tell me|give me|copy|list)\b"
        r".{0,30}\byour\s+(?:own\s+)?(?:prompt|instructions|rules|configuration|guidelines)\b",
        r"\b(?:jailbreak|dan mode|developer mode|debug mode|god mode|do anything now|unfiltered|sudo)\b",
        r"\b(?:pretend|role ?play|act as (?:if|a|an|though|my)|you are now|you're now|play the part)\b",
        r"\bfrom (?:now|here) on\b|\bnew (?:instructions?|rules?|task)\s*:|"
        r"\bwhatever (?:you|the ecg|it|is) (?:see|show|mea)",
        r"\b(?:say|reply|answer|respond|output|write|state|print)\b.{0,20}\b(?:only|just|exactly|nothing but)\b"
        rf".{{0,30}}(?:{_QUOTE}|:)",
        rf"\b(?:only|just|simply) (?:say|reply|answer|output|print|write)\b.{{0,12}}{_QUOTE}|\brepeat after me\b",
        r"\blie (?:to (?:me|him|her|them|the)|about)\b|\bmake (?:something|things|it|them) up\b|\bmake up an?\b|"
        r"\b(?:an?|some) (?:false|fake|made up|untrue|wrong) (?:\w+ ){0,2}(?:rate|rhythm|reading|report|answer|value)",
        r"\bset(?:ting)? (?:your|the|all|these|those) .{0,40}\baside\b|\bnow you\s*:|\bq\s*:.{1,200}\ba\s*:",
        rf"{_ASSUME}.{{0,80}}\b(?:no|without|other|new)\b.{{0,20}}\brules?\b|\bin a world\b.{{0,80}}{_AS_WISHED}|"
        rf"{_ASSUME}.{{0,80}}\bwere (?:all |only |just )?{_AS_WISHED}",
        rf"{_ASSUME}(?=.{{0,80}}{_AS_WISHED})"
        r".{0,120}(?:\b(?:and|then|so|please)|[,.;:])\s+(?:say|answer|reply|write|confirm|state|call it)\b",
        r"\binstead of the (?:true|real|measured|right|correct)\b|\bfirst letters?\b.{0,20}\b(?:of|from)\b",
        r"\bso (?:write|say|print|report|produce|call it|confirm)\b",
        r"\b(?:decode|decrypt|rot ?13|base ?64|caesar|hexadecimal)\b|\bread\b.{0,20}\bbackwards?\b",
    )
)
_FOREIGN_ORDERS = re.compile(
    r"\b(?:ignorier\w*|ignora(?:te|d)?|ignorez|ignore (?:les|toutes|tes)|oubli\w*|olvida\w*|dimentica\w*|vergiss|"
    r"negeer|glem|ignorera|pomiń|zignoruj|esqueça|игнорируй\w*|забудь\w*|忽略|無視|무시)\b|忽略|無視|무시"
)
_EMERGENCY = tuple(
    re.compile(pattern)
    for pattern in (
        r"\b(?:i|we|he|she)(?: am|'m|'ve| have| has| feel| got| suddenly| keep)\b.{0,40}\b(?:chest (?:pain|pressure|"
        r"tightness|ache)|pain in (?:my|the) (?:chest|left arm|jaw)|short(?:ness)? of breath|trouble breathing)",
        r"\b(?:my|his|her) chest\b.{0,25}\b(?:hurt|tight|pain|burn|press|heavy|crush)",
        r"(?:can't|cannot|can not|can hardly|cant) breathe|\b(?:isn't|not|stopped) breathing|\bno pulse\b",
        r"\b(?:just|suddenly) (?:collapsed|passed out)|\bis unconscious\b|\bunresponsive\b|going to (?:faint|pass out)",
        r"\b(?:i am|i'm|think i'm|is|he's|she's) having (?:a|another) (?:heart attack|stroke)",
        r"\bkill myself\b|\bsuicid|\boverdose|\ball my (?:tablets|pills)|\bcall (?:an ambulance|911|112|999)\b",
    )
)
_NOT_NOW = re.compile(
    r"\b(?:patients?|yesterday|ago|last (?:week|night|month|year)|history|since|previous|y/?o|year old)\b"
)
_FOREIGN_WORDS = frozenset(
    re.findall(
        r"\w+",
        "der die das und ist nicht wie welcher welche gibt es ein eine im mir bitte le les des est une dans quel "
        "quelle que pas el los una por cual hay qué es il che di gli sono questo quale per het een niet wat zijn "
        "jest czy nie det och är hva er o os uma não qual sur avec para con della nel",
    )
)
_ENGLISH_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the is a an what which how does do of in this that it there are any my i you to and for me please can was "
        "with on not or be have has if at so",
    )
)
_BARE = frozenset(
    re.findall(
        r"\w+",
        "why not really are you sure and so how come since when explain please go on do it yes no ok okay both of "
        "them what else can give an example more again that mean does then certain right tell me",
    )
)
_LEET = str.maketrans("013457@$", "oieastas")
_LOOKS_LIKE = str.maketrans("аеорсухіѕԁոАЕОРСТХВНКМІαοερνι", "aeopcyxisdnAEOPCTXBHKMIaoepvi")


def _clean(text: str) -> str:
    """Return a text without what can't be seen (zero-width and direction marks), composed, with plain quotes."""
    text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode("utf-8"))
    kept = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cn") or c in "\n\t")
    return kept.replace("’", "'").strip()


def _readings(text: str) -> list[str]:
    """Return a text as it may be meant: as it stands, and with common disguises taken off; in small letters."""
    low = re.sub(r"\s+", " ", text.lower())
    made = [low, low[::-1], str(codecs.encode(low, "rot13"))]
    made.append(re.sub(r"[\w@$]+", lambda m: m[0].translate(_LEET) if not m[0].isalpha() else m[0], low))
    made.append(text.translate(_LOOKS_LIKE).lower())
    made.append(re.sub(r"\b(?:\w[\s.\-_*]+){3,}\w\b", lambda m: re.sub(r"[\s.\-_*]", "", m[0]), low))
    made.append(re.sub(r"[\"'“”‘’]\s*(?:\+|,|and|&)\s*[\"'“”‘’]", "", low))  # "ig" + "nore"
    made += _decoded(text)
    return list(dict.fromkeys(made))


def _decoded(text: str) -> list[str]:
    """Return what base64 and hexadecimal parts of a text say, if they say something."""
    found = []
    for part in re.findall(r"[A-Za-z0-9+/_-]{12,}={0,2}", text):
        try:
            found.append(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, ValueError):
            continue
    for part in re.findall(r"(?:[0-9a-fA-F]{2}\s?){6,}", text):
        found.append(bytes.fromhex(re.sub(r"\s", "", part)))
    said = [data.decode("ascii", "replace").lower() for data in found]
    return [one for one in said if re.fullmatch(r"[a-z0-9 .,:;!?'\"()-]+", one) and re.search(r"[a-z]{3}", one)]


def _is_order(text: str) -> bool:
    """Return whether a rule takes a text for an attempt to change the rules."""
    if _SPELLED.search(text) or _FOREIGN_ORDERS.search(text.lower()) or _is_flood(text):
        return True
    if any(" " in one or len(one) > 15 for one in _decoded(text)):
        return True  # whoever asks plainly has no need to hide the words
    return any(rule.search(reading) for reading in _readings(text) for rule in _RULES)


def _is_flood(text: str) -> bool:
    """Return whether a text says the same few words over and over."""
    words = text.lower().split()
    return len(words) > 60 and len(set(words)) < len(words) / 5


def _is_emergency(text: str) -> bool:
    low = " ".join(text.lower().split())
    return not _NOT_NOW.search(low) and any(rule.search(low) for rule in _EMERGENCY)


def _is_foreign(text: str) -> bool:
    """Return whether a text is in another language than English, as far as letters and small words tell."""
    letters = [c for c in text if c.isalpha()]
    if letters and sum(not c.isascii() for c in letters) > 0.3 * len(letters):
        return True
    words = re.findall(r"[^\W\d_]+", text.lower())
    foreign, english = (sum(word in known for word in words) for known in (_FOREIGN_WORDS, _ENGLISH_WORDS))
    return foreign >= 2 and foreign > 2 * english


_VALUE = (
    r"(?:(?:(?:heart|ventricular|pulse) )?rate|(?:heart )?rhythm|pulse|p|pr|pq|qrs|rr|qtc?|corrected qt|"
    r"(?:(?:qrs|electrical|heart) )?axis)"
)
_MEASURE = re.compile(  # "the", and no "normal": this one's, by a rule, since "What is a ...?" is so near
    r"(?:and |so |please |tell me |give me |name |state |what is |what are |what about |"
    r"how (?:long|wide|broad|fast|high) is |where (?:is|does) )*"
    rf"(?:the|his|her|my|your|its) {_VALUE}(?: and (?:the )?{_VALUE})*"
    r"(?: (?:interval|duration|width|wave|time|complex))*"
    r"(?: (?:point|lie|here|please|now|in this ecg|of this ecg))*[?.!]*"
)


def _is_measure(text: str) -> bool:
    """Return whether a question asks for a value of the recording in plain words, such as "What is the heart rate?"."""
    return _MEASURE.fullmatch(_mask(text).replace(",", "")) is not None


def _ruled(text: str) -> str:
    """Return what a rule makes of a cleaned question: a key of `REASONS`, "ecg", or "" if none applies."""
    if not any(c.isalnum() for c in text):
        return "empty"
    if len(text) > LONGEST:
        return "instruction" if _is_flood(text) else "long"
    if _MARKS.search(text) or _MARKS.search(re.sub(r"\s*([<|>\[\]/])\s*", r"\1", text)):
        return "instruction"
    if _is_emergency(text):
        return "emergency"
    if _is_order(text):
        return "instruction"
    if _is_foreign(text):
        return "language"
    return "ecg" if _is_measure(text) else ""


# ---- the regression -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """From which probability on a question is an instruction, and else one about the recording."""

    instruction: float
    ecg: float

    def kinds(self, probabilities: np.ndarray) -> list[str]:
        """Return the kind of each row of probabilities (n, 4), in the order of `FITTED`."""
        out = []
        for ecg, knowledge, outside, instruction in probabilities:
            if instruction >= self.instruction:
                out.append("instruction")
            elif ecg >= self.ecg:
                out.append("ecg")
            else:
                out.append(FITTED[int(np.argmax([ecg, knowledge, outside]))])
        return out


@dataclass(frozen=True)
class Fitted:
    """The regression, the words that it reads beside the embeddings, and the thresholds.

    Attributes:
        model: on features (n, 384 + words).
        words: masked texts → weighted counts (n, words) of the training questions' words and pairs of words.
        thresholds: from which probability on a text is of a kind.
    """

    model: LogisticRegression
    words: TfidfVectorizer
    thresholds: Thresholds

    def probabilities(self, masked: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, 4) of `FITTED` for masked texts and their embeddings (n, 384)."""
        order = [list(self.model.classes_).index(kind) for kind in FITTED]
        return self.model.predict_proba(_features(self.words, masked, vectors))[:, order]


def _features(words: TfidfVectorizer, masked: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    return np.hstack([vectors, words.transform(masked).toarray()])


# What an error costs when thresholds are chosen: a plain question about the recording that is refused, and an order
# that is followed, weigh most.
_COSTS: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        ("ecg", "knowledge"): 3,
        ("ecg", "outside"): 6,
        ("ecg", "instruction"): 6,
        ("knowledge", "ecg"): 1,
        ("knowledge", "outside"): 2,
        ("knowledge", "instruction"): 2,
        ("outside", "ecg"): 2,
        ("outside", "knowledge"): 1.5,
        ("outside", "instruction"): 0.5,
        ("instruction", "ecg"): 4,
        ("instruction", "knowledge"): 3,
        ("instruction", "outside"): 0.5,
    }
)
STRENGTH = 10.0  # inverse strength of regularization, by cross-validation without the test split
GRID = tuple(round(0.15 + 0.05 * k, 2) for k in range(13))
_lock = threading.Lock()


@cache
def _encoder() -> Any:
    from ecgchat_lib.coca.text import ReportEncoder

    return ReportEncoder()


def _embed(texts: Sequence[str]) -> np.ndarray:
    """Return the sentence embeddings (n, 384) of texts; nothing of a user's text is kept."""
    with _lock:
        vectors = _encoder()(texts).numpy()
        _encoder().forget()
    return vectors


def _embed_cached(texts: Sequence[str]) -> np.ndarray:
    """Return embeddings as `_embed`, kept in the cache folder under a name made of the texts and the encoder's hash."""
    from ecgchat_lib.models import PARTS

    made_by = [FORMAT, *sorted(PARTS["report-encoder"].files.values()), *texts]
    path = cache_folder() / "scope" / f"{hashlib.sha256(chr(0).join(made_by).encode()).hexdigest()}.npy"
    try:
        vectors = np.load(path, allow_pickle=False)
        if vectors.shape == (len(texts), 384) and np.isfinite(vectors).all():
            return vectors
    except (OSError, ValueError, EOFError):
        pass
    vectors = _embed(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        np.save(file, vectors)
    os.replace(partial, path)
    return vectors


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?;])\s+|\n+", text) if part.strip()]


def _parts(text: str) -> tuple[list[str], list[str]]:
    """Return a text in chunks that the encoder reads whole, and the sentences to be read by themselves; masked."""
    words = text.split()
    chunks = [" ".join(words[start : start + CHUNK]) for start in range(0, len(words), CHUNK)]
    if len(chunks) > MOST_CHUNKS:  # a very long text: its beginning, its end, and what lies between
        places = np.linspace(0, len(chunks) - 1, MOST_CHUNKS).round().astype(int)
        chunks = [chunks[int(place)] for place in places]
    sentences = [one for one in _sentences(text) if len(one.split()) >= SENTENCE][:MOST_CHUNKS]
    alone = sentences if len(sentences) > 1 else []
    return [_mask(one) for one in chunks], [_mask(one) for one in alone]


def _joined(probabilities: np.ndarray, chunks: int) -> np.ndarray:
    """Return one row (4,) for a text from the rows of its chunks and sentences: an order anywhere in it counts."""
    row = probabilities[:chunks].mean(axis=0)
    row[3] = probabilities[:, 3].max()
    return row


def _read_texts(fitted: Fitted, texts: Sequence[str], *, cached: bool) -> np.ndarray:
    """Return the probabilities (n, 4) of `FITTED` for cleaned texts."""
    parts = [_parts(text) for text in texts]
    flat = [one for chunks, alone in parts for one in (*chunks, *alone)]
    rows = fitted.probabilities(flat, (_embed_cached if cached else _embed)(flat))
    out, start = [], 0
    for chunks, alone in parts:
        stop = start + len(chunks) + len(alone)
        out.append(_joined(rows[start:stop], len(chunks)))
        start = stop
    return np.array(out).reshape(-1, len(FITTED))


def fit_scope(questions: Sequence[Question]) -> Fitted:
    """Fit the regression on the training split, and choose the thresholds on the validation split.

    Args:
        questions: the collection; the test split isn't read.

    Raises:
        MissingPartError: the sentence encoder isn't installed.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train = [item for item in questions if item.split == "train" and not item.after]
    masked = [_mask(_clean(item.text)) for item in train]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"\w+|\?", sublinear_tf=True).fit(masked)
    features = _features(words, masked, _embed_cached(masked))
    tried = [item for item in questions if item.split == "validation" and not item.after]
    asked = [(item, text) for item in tried if not _ruled(text := _clean(item.text))]
    model = LogisticRegression(C=STRENGTH, max_iter=2000, class_weight="balanced")
    fitted = Fitted(model.fit(features, [_fitted_kind(item.kind) for item in train]), words, Thresholds(0.5, 0.5))
    rows = _read_texts(fitted, [text for _, text in asked], cached=True)
    return replace(fitted, thresholds=_choose(rows, [_fitted_kind(item.kind) for item, _ in asked]))


def _fitted_kind(kind: str) -> str:
    return "ecg" if kind == "unknown_finding" else kind


def _choose(rows: np.ndarray, truth: Sequence[str]) -> Thresholds:
    """Return the thresholds of least cost on the grid; of several, those in the middle."""
    costs: dict[Thresholds, float] = {}
    for instruction in GRID:
        for ecg in GRID:
            thresholds = Thresholds(instruction, ecg)
            pairs = zip(truth, thresholds.kinds(rows), strict=True)
            costs[thresholds] = sum(_COSTS.get(pair, 0.0) for pair in pairs) / max(len(truth), 1)
    least = min(costs.values())
    good = [thresholds for thresholds, cost in costs.items() if cost == least]
    middle = np.median([(one.instruction, one.ecg) for one in good], axis=0)
    return min(good, key=lambda one: abs(one.instruction - middle[0]) + abs(one.ecg - middle[1]))


@cache
def load_scope() -> Fitted:
    """Return the fitted regression of the shipped questions; the second call is free."""
    return fit_scope(read_questions())


# ---- the answer -----------------------------------------------------------------------------------------------------


def scope_of(question: str, *, turns: Sequence[tuple[str, str]] = ()) -> Scope:
    """Tell what a question is about, and why it isn't answered if it isn't.

    Args:
        question: as the user wrote it; anything may stand in it.
        turns: (question, answer) pairs so far; a bare "Why?" is of the kind of the question before it.

    Raises:
        MissingPartError: the sentence encoder isn't installed.
        EcgChatError: the shipped questions or the knowledge base can't be read.
    """
    text, before = _clean(question), len(turns)
    while before and _is_bare(text):
        before -= 1
        text = _clean(turns[before][0])
    return replace(scopes_of([text])[0], question=text)


def scopes_of(questions: Sequence[str]) -> list[Scope]:
    """Tell of several questions, each by itself, what they are about; see `scope_of`."""
    texts = [_clean(question) for question in questions]
    ruled = [_ruled(text) for text in texts]
    read = [text for text, rule in zip(texts, ruled, strict=True) if not rule]
    fitted = load_scope() if read else None
    found = iter([] if fitted is None else _fitted_scopes(fitted, read))
    return [_by_rule(rule) if rule else next(found) for rule in ruled]


def _by_rule(rule: str) -> Scope:
    kind = rule if rule in ("instruction", "ecg") else "outside"
    return Scope(kind, REASONS.get(rule, ""), 1.0)


_POINTING = re.compile(  # at a recording: such a question isn't about ECGs in general
    r"\b(?:this|these|my|his|her|your|(?:first|second|other|last|new|newer|old|older|earlier|previous|latest)) "
    r"(?:12 lead |two )?ecgs?\b"
)


def _fitted_scopes(fitted: Fitted, texts: Sequence[str]) -> list[Scope]:
    """Return what the regression makes of cleaned questions."""
    rows = _read_texts(fitted, texts, cached=False)
    out = []
    for text, row, kind in zip(texts, rows, fitted.thresholds.kinds(rows), strict=True):
        if kind == "knowledge" and (_POINTING.search(_mask(text)) or _is_measure(re.split(r"[.:;,]\s", text)[-1])):
            kind = "ecg"
        probability = float(row[FITTED.index(kind)])
        names = unknown_findings(text) if kind == "ecg" else ()
        if names:
            reason = REASONS["unknown_finding"].format(it=", ".join(names))
            out.append(Scope("unknown_finding", reason, probability))
        else:
            out.append(Scope(kind, REASONS.get(kind, ""), probability))
    return out


def _is_bare(text: str) -> bool:
    """Return whether a question has no word of its own to tell what it is about."""
    words = re.findall(r"[a-z]+", text.lower())
    return 0 < len(words) <= 6 and all(word in _BARE for word in words)
