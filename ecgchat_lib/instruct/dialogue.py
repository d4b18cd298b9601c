"""More kinds of questions for ECG-Instruct: follow-ups, recalls, explanations, what isn't known, the whole report.

It extends `build.Teacher`, whose own wordings stay as they are. How often a finding is affirmed and denied is kept
level over a whole data set by `Balance`. Taught in: 10 §3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.instruct.build import Statements, Teacher, Turn
from ecgchat_lib.instruct.facts import find_errors
from ecgchat_lib.instruct.findings import FINDINGS, Finding, get_finding, presence, present_codes
from ecgchat_lib.instruct.wording import INTERVALS, QUESTIONS, VERDICTS, join, whole, without_article

if TYPE_CHECKING:
    import numpy as np

    from ecgchat_lib.ecg.measure import Measurements

# How each finding is recognized, as textbooks have it; no word of it is about the ECG at hand.
SIGNS: Mapping[str, str] = MappingProxyType(
    {
        "sinus": "a P wave of the usual shape stands before each QRS complex, upright in lead II",
        "sinus_bradycardia": "P waves of the usual shape lead the QRS complexes, at a rate below 60 per minute",
        "sinus_tachycardia": "P waves of the usual shape lead the QRS complexes, at a rate above 100 per minute",
        "sinus_arrhythmia": "P waves keep their shape while the time between the beats swings, often with the breath",
        "afib": "there are no P waves, and the QRS complexes come at times without any pattern",
        "flutter": "the baseline runs like a saw, best seen in the inferior leads",
        "svt": "narrow QRS complexes follow each other fast and evenly, and P waves are hard to find",
        "paced": "a thin spike stands before the P wave or the QRS complex",
        "av_block": "the PR interval is longer than 200 ms, and every P wave is followed by a QRS complex",
        "lbbb": "the QRS complex is wide, broad and notched in the lateral leads and deep in V1",
        "rbbb": "V1 shows a second R wave, and leads I and V6 a broad S wave",
        "lafb": "the axis points far to the left, with small Q waves in I and aVL and deep S waves in II, III and aVF",
        "pvc": "a wide QRS complex comes early, without a P wave before it",
        "pac": "a P wave of another shape comes early, and a QRS complex of the usual shape follows",
        "lvh": "R waves in the left leads are tall and S waves in right ones deep, often with a strained ST segment",
        "anterior_mi": "Q waves stand in the chest leads over the front wall, or R waves don't grow there",
        "inferior_mi": "Q waves stand in leads II, III and aVF",
        "infarction": "Q waves stand in leads that look at one wall of the heart",
        "st_depression": "the segment after the QRS complex lies below the level before it",
        "ischemia": "the ST segments or T waves change in leads that look at one wall of the heart",
        "t_changes": "T waves are flat, or point the other way than the QRS complex",
        "long_qt": "the time from the start of the QRS complex to the end of the T wave is too long for the rate",
    }
)

ASKED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "diagnosis": (
            *QUESTIONS["diagnosis"],
            "What is wrong with my heart, going by this ECG?",
            "Please write the report of this ECG.",
            "Which abnormalities, if any, are there?",
            "List all findings and give your verdict.",
        ),
        "summary": (
            "Put it into one sentence, please.",
            "What is the short version?",
            "Give me the gist of this ECG.",
            "Can you sum up the rhythm and the verdict?",
        ),
        "regular": ("Are the beats regular?", "Does the heart beat evenly?", "Is the rhythm regular or irregular?"),
        "judged": ("Is the {it} normal?", "Is that within normal limits, the {it}?", "How is the {it} to be judged?"),
        "axis judged": (
            "Is the axis normal?",
            "Is there an axis deviation?",
            "Which way does the axis deviate, if any?",
        ),
        "follow rate": ("Is that fast, slow or normal?", "Is that a normal rate?", "Should that rate worry me?"),
        "follow interval": ("And the {it}?", "What about the {it}?", "Then how about the {it}?"),
        "explain": (
            "How is {it} recognized?",
            "What does one look for to see {it}?",
            "How can you tell that it is {it}?",
            "Explain how {it} looks on paper.",
        ),
        "open": (
            "Can you say whether there is {it}?",
            "Is {it} certain, or certainly not there?",
            "What about {it}?",
        ),
        "unmeasured": ("Which values could not be measured?", "Is there a value that you don't have?"),
        "measured": ("Which values were measured?", "What do you have numbers for?"),
        "either": ("Is it {one} or {other}?", "Which of the two is there, {one} or {other}?"),
        "tag": ("So there is no {it}, is there?", "Then I don't have {it}, right?", "Surely no {it}?"),
        "recall": ("You said something about that before; what was it? I mean: {it}", "Once more, please: {it}"),
    }
)

TOLD: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "report": ("Your ECG shows {it}.",),
        "nothing": ("Your ECG shows no abnormal finding.",),
        "verdict": ("It's {it}.",),
        "regular": ("Yes, the beats are regular.", "The rhythm is regular."),
        "irregular": ("No, the beats are irregular.", "The rhythm is irregular."),
        "explain": ("In general, {it}.",),
        "open": (
            "I can't say whether there is {it}; what is stated about this ECG doesn't settle it.",
            "I can't tell whether there is {it} from what is known about this ECG.",
        ),
        "all measured": ("The {it} were all measured.",),
        "some measured": ("The {it} could be measured.", "There are values for the {it}."),
        "unmeasured": ("The {it} could not be measured.",),
        "either": ("This ECG shows {one}, not {other}.", "It is {one}; {other} is not seen."),
        "tag present": ("On the contrary, this ECG shows {it}.", "It does: I see {it} here."),
        "tag absent": ("Right, this ECG does not show {it}.", "That is right, there is no sign of {it}."),
        "recall": ("As I said: {it}", "As before: {it}", "It is still the same: {it}"),
    }
)

BEYOND: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Do I need treatment?", "Which drug should be taken?", "What should be done now?"),
        ("An ECG alone can't tell that; please ask your physician.", "That is for a physician to decide."),
    ),
    (
        ("How old is the patient?", "Is this the ECG of a man or a woman?"),
        ("That isn't among what I was given about this ECG.", "I wasn't told, and the tracing can't tell it."),
    ),
    (
        ("What is the blood pressure?", "How well does the heart pump?"),
        ("An ECG doesn't measure that.", "That can't be read from an ECG."),
    ),
    (
        ("Does the patient have chest pain?", "Which complaints does the patient have?"),
        ("I know nothing about complaints; I have this ECG only.", "Only the ECG is known to me, no complaints."),
    ),
    (
        ("Has this changed since last year?", "Was it like this before?"),
        ("I'd need an earlier ECG to compare with.", "There is no other ECG here to compare this one with."),
    ),
)

JUDGED: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"heart_rate_bpm": (60, 100), "pr_ms": (120, 200), "qrs_ms": (0, 120)}
)
MOST_BEYOND, MOST_OPEN = 2, 4  # questions of a dialogue that can't be answered: no ECG tells; nothing is stated
TAG_SHARE = 0.2  # of the questions about a finding that presume its absence
EITHER_SHARE = 0.15  # of the questions about a finding that set it against an absent one
AHEAD = {True: 2, False: 1}  # how far affirmed, and denied, answers may be ahead, for each finding and split
ALL_VALUES = {"heart_rate_bpm": "heart rate", **INTERVALS, "axis_deg": "axis"}


class Balance:
    """How often each finding was affirmed and denied so far, for each split."""

    def __init__(self) -> None:
        self._ahead: defaultdict[tuple[str, str], int] = defaultdict(int)

    def add(self, split: str, name: str, affirmed: bool) -> None:
        """Count one answer."""
        self._ahead[split, name] += 1 if affirmed else -1

    def need(self, split: str, name: str, affirmed: bool) -> int:
        """Return by how much such answers are behind the others; negative if they are ahead."""
        ahead = self._ahead[split, name]
        return -ahead if affirmed else ahead

    def allows(self, split: str, name: str, affirmed: bool) -> bool:
        """Return whether one more such answer keeps them level."""
        return self.need(split, name, affirmed) > -AHEAD[affirmed]


@dataclass(frozen=True)
class Chain:
    """A question with those that may follow it at once, because they refer back to it."""

    first: Turn
    follow: tuple[Turn, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All of it, in order."""
        return (self.first, *self.follow)


class Narrator(Teacher):
    """A `Teacher` with more kinds of questions, which notes the wordings that it picks.

    Args:
        statements: (SCP code, likelihood in percent) pairs.
        measurements: what was measured, or None; then nothing about numbers is asked.
        rng: picks wordings.
    """

    def __init__(self, statements: Statements, measurements: Measurements | None, rng: np.random.Generator) -> None:
        super().__init__(statements, measurements, rng)
        self._picks: list[int] = []

    def _pick(self, texts: Sequence[str]) -> str:
        number = int(self.rng.integers(len(texts)))
        self._picks.append(number)
        return texts[number]

    @staticmethod
    def value_of(measurements: Measurements, field: str) -> int | None:
        """Return a measured value as a whole number; None if it is unknown."""
        return whole(measurements.judged(field))

    def value(self, field: str) -> int | None:
        """Return a measured value as a whole number; None if it is unknown."""
        return self._value(field)

    def note(self, make: Callable[[], Turn | None]) -> Turn | None:
        """Make a turn and write into `wording` which texts were picked; None if it would say what isn't so.

        Rules can meet: a stated rhythm and a measured regularity may contradict each other. What the fact check
        doesn't pass is not asked.
        """
        self._picks = []
        turn = make()
        if turn is None or find_errors(turn.answer, self.statements, self.measurements):
            return None
        return replace(turn, wording=f"{turn.kind}:{'.'.join(map(str, self._picks))}")

    def report(self, asked: Finding | None = None) -> Turn | None:
        """Return the whole diagnosis in the paper's wording; None if nothing is stated with certainty.

        Args:
            asked: a finding that the question asks about first, so that the answer begins with yes or no.
        """
        verdict, phrases = self.verdict(), self.phrases()
        if verdict is None and not phrases:
            return None
        sentences = [self._pick(TOLD["report"]).format(it="; ".join(phrases)) if phrases else TOLD["nothing"][0]]
        if verdict is not None:
            sentences.append(self._pick(TOLD["verdict"]).format(it=VERDICTS[verdict]))
        if asked is None:
            question = self._pick(ASKED["diagnosis"])
            return Turn("diagnosis", verdict or "open", verdict, question, " ".join(sentences))
        turn = self.presence(asked)
        if turn is None:
            return None
        return replace(turn, kind="checked diagnosis", answer=" ".join([turn.answer, *sentences]))

    def phrases(self) -> list[str]:
        """Return a phrase for each certain statement but NORM: rhythm first, then diagnoses, then form."""
        order = {"rhythm": 0, "diagnostic": 1, "form": 2}
        present = present_codes(self.statements) - {"NORM"}
        rhythm = self.stated_rhythm()
        stated = frozenset() if rhythm is None else get_finding(rhythm).codes
        rhythms = {code for finding in FINDINGS if finding.rhythm for code in finding.codes}
        kept = [code for code in PHRASES if code in present and (code not in rhythms or code in stated)]
        kept.sort(key=lambda code: min(order[kind] for kind in STATEMENTS[code].kinds))
        # "normal sinus rhythm" says more than the statement SR does
        nouns = [[t for t in PHRASES[code] if not t.startswith(("the ", "normal "))] for code in kept]
        return [self._pick(texts) for texts in nouns]

    def summary(self) -> Turn | None:
        """Return rhythm and verdict in one sentence each; None where either is open."""
        rhythm, verdict = self.stated_rhythm(), self.verdict()
        if rhythm is None or verdict is None:
            return None
        rate = self._value("heart_rate_bpm")
        speed = "" if rate is None else f" at {rate} beats per minute"
        answer = f"This is {VERDICTS[verdict]} with {get_finding(rhythm).phrase}{speed}."
        return Turn("summary", verdict, verdict, self._pick(ASKED["summary"]), answer)

    def regular(self) -> Turn | None:
        """Ask whether the beats come evenly; None where that wasn't measured."""
        even = None if self.measurements is None else self.measurements.regular
        if even is None:
            return None
        answer = self._pick(TOLD["regular" if even else "irregular"])
        return Turn("regular", "regular", even, self._pick(ASKED["regular"]), answer)

    def judged(self, field: str, asked: Sequence[str]) -> Turn | None:
        """Ask whether a measured value is normal; None where it is unknown. Limits as in `JUDGED`."""
        value = self._value(field)
        if value is None:
            return None
        low, high = JUDGED[field]
        name, unit = ALL_VALUES[field], "beats per minute" if field == "heart_rate_bpm" else "ms"
        if value > high or (field == "qrs_ms" and value == high):
            where = f"not below {high}" if field == "qrs_ms" else f"above {high}"
        elif value < low:
            where = f"below {low}"
        else:
            where = f"below {high}" if field == "qrs_ms" else f"in the normal range of {low} to {high}"
        answer = f"The {name} is {value} {unit}, {where}."
        return Turn("judged", field, value, self._pick(asked).format(it=name), answer)

    def axis_judged(self) -> Turn | None:
        """Ask whether the axis is normal; None where it is unknown or far off."""
        value = self._value("axis_deg")
        if value is None or value < -90:
            return None
        name = "left axis deviation" if value < -30 else "right axis deviation" if value > 90 else None
        answer = (
            f"There is {name}: the axis is {value} degrees." if name else f"The axis is normal, at {value} degrees."
        )
        return Turn("axis judged", "axis_deg", value, self._pick(ASKED["axis judged"]), answer)

    def explain(self, finding: Finding) -> Turn:
        """Ask how a finding is recognized."""
        answer = self._pick(TOLD["explain"]).format(it=SIGNS[finding.name])
        return Turn("explain", finding.name, None, self._pick(ASKED["explain"]).format(it=finding.phrase), answer)

    def open(self, finding: Finding) -> Turn | None:
        """Ask about a finding that the statements leave open; None where they don't."""
        if presence(finding, self.statements) is not None:
            return None
        answer = self._pick(TOLD["open"]).format(it=finding.phrase)
        return Turn("open", finding.name, None, self._pick(ASKED["open"]).format(it=finding.phrase), answer)

    def measured(self, known: bool) -> Turn | None:
        """Ask which values were measured (`known`) or couldn't be; None if there is nothing to name."""
        if self.measurements is None:
            return None
        names = [name for field, name in ALL_VALUES.items() if (self._value(field) is not None) == known]
        if not names:
            return None
        key = "unmeasured" if not known else "all measured" if len(names) == len(ALL_VALUES) else "some measured"
        question = self._pick(ASKED["measured" if known else "unmeasured"])
        return Turn("measured", "values", None, question, self._pick(TOLD[key]).format(it=join(names)))

    def either(self, there: Finding, missing: Finding) -> Turn:
        """Ask which of two findings is there."""
        pair = [there.phrase, missing.phrase]
        one, other = pair if self.rng.random() < 0.5 else pair[::-1]
        answer = self._pick(TOLD["either"]).format(one=there.phrase, other=missing.phrase)
        question = self._pick(ASKED["either"]).format(one=one, other=other)
        return Turn("either", f"{there.name}/{missing.name}", None, question, answer)

    def tag(self, finding: Finding) -> Turn | None:
        """Ask with a presumption that a finding is absent, right or wrong; None where it is open."""
        plain = self.presence(finding)
        if plain is None:
            return None
        bare = without_article(finding.phrase)
        key = "tag present" if plain.truth else "tag absent"
        answer = self._pick(TOLD[key]).format(it=finding.phrase if plain.truth else bare)
        return replace(plain, question=self._pick(ASKED["tag"]).format(it=bare), answer=answer)

    def beyond(self, number: int) -> Turn:
        """Ask for something that no ECG, or not this one, tells."""
        questions, answers = BEYOND[number]
        return Turn("beyond", str(number), None, self._pick(questions), self._pick(answers))

    def recall(self, earlier: Turn) -> Turn:
        """Ask again what was answered before."""
        question = self._pick(ASKED["recall"]).format(it=earlier.question)
        return replace(
            earlier, kind="recall", question=question, answer=self._pick(TOLD["recall"]).format(it=earlier.answer)
        )

    # ---------------------------------------------------------------------------------------------------------------

    def chains(self) -> list[Chain]:
        """Return everything that can be asked but the presence of findings, in random order."""
        some = self.rng.permutation(len(BEYOND))[:MOST_BEYOND]
        left_open = [FINDINGS[int(k)] for k in self.rng.permutation(len(FINDINGS))]
        left_open = [finding for finding in left_open if presence(finding, self.statements) is None]
        made = [
            self._chain(self.rhythm),
            self._chain(self.rate, lambda: self.judged("heart_rate_bpm", ASKED["follow rate"])),
            self._chain(self.axis, self.axis_judged),
            self._chain(self.interval_chain("pr_ms"), lambda: self.judged("pr_ms", ASKED["judged"])),
            self._chain(self.interval_chain("qrs_ms"), lambda: self.judged("qrs_ms", ASKED["judged"])),
            self._chain(self.interval_chain("qt_ms"), self._then_qtc),
            self._chain(self.normal),
            self._chain(self.report),
            self._chain(self.summary),
            self._chain(self.regular),
            self._chain(lambda: self.measured(known=True)),
            self._chain(lambda: self.measured(known=False)),
            *(self._chain(lambda n=n: self.beyond(int(n))) for n in some),  # type: ignore[misc]
            *(self._chain(lambda f=f: self.open(f)) for f in left_open[:MOST_OPEN]),  # type: ignore[misc]
        ]
        found = [chain for chain in made if chain is not None]
        return [found[int(k)] for k in self.rng.permutation(len(found))]

    def interval_chain(self, field: str) -> Callable[[], Turn | None]:
        """Return what asks for an interval."""
        return lambda: self.interval(field)

    def _then_qtc(self) -> Turn | None:
        turn = self.interval("qtc_ms")
        return turn and replace(turn, question=self._pick(ASKED["follow interval"]).format(it=INTERVALS["qtc_ms"]))

    def _chain(self, first: Callable[[], Turn | None], *follow: Callable[[], Turn | None]) -> Chain | None:
        start = self.note(first)
        if start is None:
            return None
        return Chain(start, tuple(turn for make in follow if (turn := self.note(make)) is not None))

    def presence_chains(self, count: int, split: str, balance: Balance) -> list[Chain]:
        """Return up to `count` questions about findings, those first that level affirmed and denied answers.

        They are counted in `balance`. One that is affirmed may be followed by how it is recognized.
        """
        every = [(f, bool(turn.truth)) for f in FINDINGS if (turn := self.note(lambda f=f: self.presence(f)))]  # type: ignore[misc]
        order = [every[int(k)] for k in self.rng.permutation(len(every))]
        order.sort(key=lambda pair: -balance.need(split, pair[0].name, pair[1]))
        out: list[Chain] = []
        used: set[str] = set()
        for finding, there in order:
            if len(out) == count or finding.name in used or not balance.allows(split, finding.name, there):
                continue
            other = self._other(order, used, split, balance) if there and self.rng.random() < EITHER_SHARE else None
            turn = self._about(finding, there, other)
            if turn is None:
                continue
            used |= {finding.name, *([other.name] if other and turn.kind == "either" else [])}
            balance.add(split, finding.name, there)
            if other and turn.kind == "either":
                balance.add(split, other.name, False)
            explained = self.note(lambda f=finding: self.explain(f)) if there else None  # type: ignore[misc]
            out.append(Chain(turn, (explained,) if explained else ()))
        return out

    def _about(self, finding: Finding, there: bool, other: Finding | None) -> Turn | None:
        """Return a question about a finding: plain, with a presumption, or against an absent one."""
        if other is not None and (turn := self.note(lambda: self.either(finding, other))) is not None:
            return turn
        if self.rng.random() < TAG_SHARE:
            return self.note(lambda: self.tag(finding))
        return self.note(lambda: self.presence(finding))

    def _other(
        self, order: Sequence[tuple[Finding, bool]], used: set[str], split: str, balance: Balance
    ) -> Finding | None:
        """Return an absent finding that may still be denied."""
        fitting = [f for f, there in order if not there and f.name not in used and balance.allows(split, f.name, False)]
        return fitting[0] if fitting else None
