"""What the prompt carries besides the question, and what the answer can be held against: each a line with its source.

Five things, each of which can be left out: the ECG tokens, the classifier's labels, the measurements, the reports of
the nearest recordings, and what the knowledge base says. `benchmarks/grounding.py` compares the ways in
which each line can be written. Taught in: 13 §1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.instruct.facts import claims
from ecgchat_lib.instruct.findings import FINDINGS, Finding
from ecgchat_lib.instruct.vocabulary import find_names

if TYPE_CHECKING:
    from ecgchat_lib.chat.neighbours import Neighbour
    from ecgchat_lib.evaluate.classifier import Reading
    from ecgchat_lib.knowledge.retrieve import Hit

GROUNDING = ("tokens", "labels", "measurements", "neighbours", "knowledge")
DEFAULT = frozenset({"tokens", "labels", "measurements"})
SIGNS, SIMILAR, KNOWN = "Signs: ", "Similar ECG: ", "Knowledge: "
LABELS_FORM = "reader"  # the chat mini's own reader writes its line; or one of `LABELS`
# One of `NEIGHBOURS`. Whole reports were not measurably better, and let strangers' sentences into the prompt.
NEIGHBOURS_FORM = "findings 3"
LONGEST_TALK, MOST_NAMED = 5000, 8  # characters searched for names of findings, and statements listed for them
LONGEST_LINE = 400  # characters of a line that quotes something
MOST_KNOWN, LONGEST_KNOWN = 1, 200  # entries of the knowledge base that stand in a prompt, and characters of each


@dataclass(frozen=True)
class Evidence:
    """One thing that an answer can rest on, or be held against.

    Attributes:
        kind: one of `GROUNDING` (not "tokens"), or "quality".
        text: the line, as it stood in the prompt or as the reader sees it.
        source: where it is from: "measured", "reader", "classifier", a neighbour's name, a citation with its DOI.
        score: a probability or a similarity, or None.
        record: which recording it is about; "" for knowledge.
        given: whether this line stood in the prompt; else it explains such a line, or the answer was checked by it.
    """

    kind: str
    text: str
    source: str = ""
    score: float | None = None
    record: str = ""
    given: bool = True

    def __str__(self) -> str:
        return self.text

    def as_dict(self) -> dict[str, object]:
        """Return every field under its name, ready for JSON."""
        return asdict(self)


def grounding(names: str | Iterable[str]) -> frozenset[str]:
    """Return a set of what the model is given about a recording.

    Args:
        names: some of `GROUNDING`, as a list or with commas; or "all", "none", or "default".

    Raises:
        ParameterError: another name.
    """
    found = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    whole = {"all": frozenset(GROUNDING), "none": frozenset[str](), "default": DEFAULT}
    if len(found) == 1 and found[0] in whole:
        return whole[found[0]]
    unknown = sorted(set(found) - set(GROUNDING))
    if unknown or not found:
        raise ParameterError(
            f"grounding {', '.join(unknown) or 'nothing'}: expected {', '.join(GROUNDING)}; all, none, default"
        )
    return frozenset(found)


# --- the classifier's labels


def chance_of(finding: Finding, reading: Reading) -> float | None:
    """Return the greatest probability of a finding's statements, or None where the classifier knows none of them."""
    known = [reading.probabilities[code] for code in finding.codes if code in reading.probabilities]
    return max(known) if known else None


def is_said(finding: Finding, reading: Reading) -> bool:
    """Return whether the classifier says one of a finding's statements."""
    return bool(finding.codes & set(reading.present))


def signs_of(reading: Reading) -> str:
    """Write a classifier's reading as the chat mini's line of signs, "Signs: sinus rhythm, ..."."""
    return SIGNS + ", ".join(_phrases(reading, "{it}")) if _phrases(reading, "{it}") else f"{SIGNS}none"


def percent_of(reading: Reading) -> str:
    """Write the same with probabilities, "Signs: sinus rhythm (97 %), ..."."""
    return SIGNS + ", ".join(_phrases(reading, "{it} ({chance:.0%})")).replace("%", " %")


def _phrases(reading: Reading, form: str) -> list[str]:
    said = [finding for finding in FINDINGS if is_said(finding, reading)]
    special = {"anterior_mi", "inferior_mi"} & {finding.name for finding in said}
    return [
        form.format(it=finding.phrase, chance=chance_of(finding, reading))
        for finding in said
        if not (special and finding.name == "infarction")
    ]


def prompt_of(reading: Reading) -> str:
    """Write it as the original's diagnosis-driven prompt, on one line."""
    return " ".join(reading.prompt().splitlines())


LABELS: Mapping[str, Callable[[Reading], str]] = MappingProxyType(
    {"signs": signs_of, "percent": percent_of, "prompt": prompt_of}
)
"""How the classifier's reading can be written into the prompt."""


def labels_evidence(reading: Reading, record: str, about: str = "") -> tuple[Evidence, ...]:
    """Return what the classifier says of a recording, with probabilities and thresholds, the likeliest first.

    Args:
        reading: of the recording.
        record: its name.
        about: question and answer; findings that they name are listed too where the classifier doesn't say them.
    """
    named = dict.fromkeys(code for _, finding in find_names(about[:LONGEST_TALK]) for code in sorted(finding.codes))
    more = [code for code in named if code in reading.probabilities and code not in reading.present][:MOST_NAMED]
    return chances(reading, record, {*reading.present, *more})


def chances(reading: Reading, record: str, codes: Iterable[str]) -> tuple[Evidence, ...]:
    """Return what the classifier says of some statements, the likeliest first, as far as it knows them."""
    out = []
    known = {code for code in codes if code in reading.probabilities}
    for code in sorted(known, key=lambda one: (-reading.probabilities[one], one)):
        chance, limit = reading.probabilities[code], reading.thresholds.get(code)
        beside = "" if limit is None else f", threshold {limit:.0%}".replace("%", " %")
        text = f"{STATEMENTS[code].description}: {chance:.0%}".replace("%", " %") + beside
        out.append(Evidence("labels", text, "classifier", round(chance, 4), record, given=False))
    return tuple(out)


# --- neighbours


def quoted(text: str, limit: int = LONGEST_LINE) -> str:
    """Return a text from outside as one quoted line: no control characters, no line breaks, no quotation marks in it.

    Marks of a chat template are taken out by `template.plain_text`, which needs the tokenizer.
    """
    plain = "".join(c if c.isprintable() else " " for c in text.replace('"', "'"))
    plain = " ".join(plain.split())
    return f'"{plain if len(plain) <= limit else plain[: limit - 1].rstrip() + "…"}"'


def neighbour_quotes(neighbours: Sequence[Neighbour], most: int = 3) -> list[str]:
    """Return a line for each of the nearest, with its report quoted."""
    return [SIMILAR + quoted(item.report) for item in neighbours[:most]]


def neighbour_findings(neighbours: Sequence[Neighbour], most: int = 3) -> list[str]:
    """Return one line with the findings that at least half of the nearest reports affirm, in the prompt's own words.

    Of a report nothing else than names of known findings reaches the prompt.
    """
    near = neighbours[:most]
    said = [{finding.name for finding, affirmed in claims(item.report) if affirmed} for item in near]
    common = [f.phrase for f in FINDINGS if near and sum(f.name in names for names in said) * 2 >= len(near)]
    return [f"Similar ECGs show: {', '.join(common) or 'nothing in common'}"] if near else []


NEIGHBOURS: Mapping[str, Callable[[Sequence[Neighbour]], list[str]]] = MappingProxyType(
    {
        "quote 1": lambda near: neighbour_quotes(near, 1),
        "quote 3": neighbour_quotes,
        "findings 3": neighbour_findings,
        "findings 8": lambda near: neighbour_findings(near, 8),
    }
)
"""How the nearest recordings' reports can be written into the prompt."""


# --- knowledge


def knowledge_lines(hits: Sequence[Hit], most: int = MOST_KNOWN, limit: int = LONGEST_KNOWN) -> list[str]:
    """Return a line for each of the best entries: its summary."""
    from ecgchat_lib.knowledge.entries import summary

    return [KNOWN + re.sub(r"\s+", " ", summary(hit.entry, limit)).strip() for hit in hits[:most]]
