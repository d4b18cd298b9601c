"""The words that a reworded answer may use: those of the templates and of the findings, and plain everyday English.

A fact check sees only what it has a word for. So a rewording with any other word is turned down: whatever it says, it
is nothing that the check could vouch for. Taught in: 10 §4.
"""

from __future__ import annotations

import re
from functools import cache

from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.instruct.dialogue import ASKED, BEYOND, SIGNS, TOLD
from ecgchat_lib.instruct.findings import FINDINGS
from ecgchat_lib.instruct.vocabulary import ABBREVIATIONS, GROUPS, SYNONYMS
from ecgchat_lib.instruct.wording import ANSWERS, INTERVALS, QUESTIONS, VERDICTS

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_PLAIN = """
a about above after again all also although an and any apart are aren't around as at based be because been before
being below besides between both but by can cannot can't clear clearly compared comes could do does doesn't don't
during each either else evidence exceeds except fact find finding findings first following for found from further
given gives had has hasn't have haven't having here how however i i'm if in indeed indicate indicates indicating
information into is isn't it it's its itself just kind known know lies like look looks made make may me measured
measurement measurements measures might more most my myself neither no none nor not note noted nothing now of on
once one only or other others our out over overall own part per please present put rather read reading reads result
results reveals said same say says second see seem seems seen shall she should show showed showing shown shows side
since so some something speak such suggest suggests tell than that that's the their them then there there's
therefore these they this those through thus times to together told too two under until up upon us value values very
was wasn't way we well were what when where whether which while who whole will with within without would yes yet you
your yours answer question looking observed observe observes detected detect recorded record recording records
tracing ecg ekg electrocardiogram lead leads patient heart cardiac beats beat beating minute minutes second seconds
ms bpm milliseconds degrees degree interval intervals duration rate rhythm axis normal abnormal borderline regular
irregular identify identified identifies visible evident apparent exhibits exhibit presence absence absent confirm
confirms confirmed conclude conclusion verdict summary diagnosis report states stated state sentence words short
simply sorry afraid unfortunately unable sure certain certainly definitely doubt sign signs
"""


def unknown_words(text: str, *allowed: str) -> list[str]:
    """Return the words of a text that are neither known here nor in one of the allowed texts, each once.

    Args:
        text: what a language model wrote.
        allowed: texts whose words it may use, such as the question and the draft answer.
    """
    known = _known().union(*(_split(one) for one in allowed))
    return [word for word in dict.fromkeys(_split(text)) if word not in known]


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("’", "'"))


@cache
def _known() -> frozenset[str]:
    texts = [_PLAIN, *ABBREVIATIONS, *INTERVALS.values(), *VERDICTS.values(), *SIGNS.values()]
    texts += [finding.phrase for finding in FINDINGS] + [text for _, names in GROUPS for text in names]
    for table in (QUESTIONS, ANSWERS, ASKED, TOLD, PHRASES, SYNONYMS):
        texts += [text for entry in table.values() for text in entry]
    texts += [text for pair in BEYOND for part in pair for text in part]
    return frozenset(word for text in texts for word in _split(text))
