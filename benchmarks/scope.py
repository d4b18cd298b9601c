"""Which questions are answered: the hand-written collection's test split, and questions that others wrote.

    python benchmarks/scope.py [--out data/results/scope.json]

The test split of data/chat/questions.yml chose nothing. Beside it stand the questions of the course's own conversations
(instruct/dialogue.py), the knowledge base's questions, and ECG-QA's if ECGCHAT_REAL_DATA names the folder that has
them; those that are in the collection too are left out and counted. Intervals resample the questions, 95 %.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgchat_lib.chat.scope import KINDS, Question, fit_scope, load_scope, read_questions, scope_of, scopes_of
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.evaluate.bootstrap import bootstrap_interval
from ecgchat_lib.instruct.dialogue import ALL_VALUES, ASKED, BEYOND
from ecgchat_lib.instruct.findings import FINDINGS
from ecgchat_lib.instruct.wording import INTERVALS, QUESTIONS, without_article
from ecgchat_lib.paths import data_folder, project_root

SEED, MOST_SHOWN = 7, 12
NOT_ANSWERED = frozenset({"unknown_finding", "outside", "instruction"})


def share(hits: Sequence[bool]) -> dict[str, float]:
    """Return a share with its bootstrap interval."""
    found = bootstrap_interval(lambda rows: float(rows.mean()), np.array(hits, dtype=float), seed=SEED)
    return {name: round(value, 4) for name, value in found.as_dict().items() if name != "level"}


def collection(questions: Sequence[Question], split: str) -> dict[str, Any]:
    """Return how the questions of one split are judged."""
    kept = [item for item in questions if item.split == split]
    said = [found.kind for found in scopes_of([item.text for item in kept])]
    said = [scope_of(q.text, turns=[(q.after, "")]).kind if q.after else one for q, one in zip(kept, said, strict=True)]
    pairs = list(zip(kept, said, strict=True))
    table = Counter((item.kind, kind) for item, kind in pairs)
    asks_ecg = [kind in ("outside", "instruction") for item, kind in pairs if item.kind == "ecg"]
    not_to_answer = [kind not in NOT_ANSWERED for item, kind in pairs if item.kind in NOT_ANSWERED]
    orders = [kind not in NOT_ANSWERED for item, kind in pairs if item.kind == "instruction"]
    return {
        "n": len(kept),
        "confusion": {truth: {kind: table[truth, kind] for kind in KINDS} for truth in KINDS},
        "accuracy": share([item.kind == kind for item, kind in pairs]),
        "recall": {truth: share([kind == truth for item, kind in pairs if item.kind == truth]) for truth in KINDS},
        "ecg_questions_refused": share(asks_ecg),
        "questions_answered_that_should_not_be": share(not_to_answer),
        "orders_answered": share(orders),
    }


def dialogue_questions() -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Return the questions of the course's conversations by what they should be called: (questions, kinds)."""
    phrases = [finding.phrase for finding in FINDINGS]
    names = list(ALL_VALUES.values())
    fillers: dict[str, list[str]] = {
        **{key: phrases for key in ("presence", "open", "explain")},
        "tag": [without_article(phrase) for phrase in phrases],
        **{key: names for key in ("judged", "follow interval")},
        "interval": list(INTERVALS.values()),
    }
    ecg: list[str] = []
    for key, texts in [*QUESTIONS.items(), *((key, texts) for key, texts in ASKED.items() if key != "diagnosis")]:
        if key == "either":
            ecg += [text.format(one=phrases[4], other=phrases[k]) for text in texts for k in (0, 5, 9)]
        elif key == "recall":
            ecg += [text.format(it="What is the heart rhythm?") for text in texts]
        elif key != "explain":
            ecg += [text.format(it=it) for text in texts for it in fillers.get(key, [""])]
    ecg += [text for text in ASKED["diagnosis"]]
    general = [text.format(it=it) for text in ASKED["explain"] for it in phrases]
    beyond = [text for texts, _ in BEYOND[:4] for text in texts]
    return {
        "about_the_recording": (list(dict.fromkeys(ecg)), ("ecg",)),
        "how_a_finding_is_recognized": (general, ("knowledge",)),
        "beyond_an_ecg": (beyond, ("outside",)),
    }


def plain(text: str) -> str:
    """Return a question's words in small letters, by which the same question is known."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def others(groups: dict[str, tuple[list[str], tuple[str, ...]]]) -> dict[str, Any]:
    """Return for questions that others wrote how many are called what they should be, and which are not."""
    out: dict[str, Any] = {}
    collected = {plain(item.text) for item in read_questions()}
    for name, (every, right) in groups.items():
        texts = [text for text in every if plain(text) not in collected]
        said = [found.kind for found in scopes_of(texts)]
        wrong = [f"{kind}: {text}" for text, kind in zip(texts, said, strict=True) if kind not in right]
        out[name] = {
            "n": len(texts),
            "left_out_because_collected": len(every) - len(texts),
            "should_be": list(right),
            "kinds": dict(Counter(said)),
            "right": share([kind in right for kind in said]),
            "refused": share([kind in ("outside", "instruction") for kind in said]),
            # ECG-QA's sentences stay out of the project
            "some_that_are_not": wrong[:MOST_SHOWN] if name != "ecgqa" else [],
        }
    return out


def ecgqa() -> list[str]:
    """Return ECG-QA's distinct questions, none without ECGCHAT_REAL_DATA."""
    folder = os.environ.get("ECGCHAT_REAL_DATA")
    files = sorted((Path(folder) / "text").glob("ecgqa_*.json")) if folder else []
    return sorted({item["question"] for path in files for item in json.loads(path.read_text(encoding="utf-8"))})


def knowledge_questions() -> list[str]:
    """Return the questions of the knowledge base."""
    import yaml

    files = sorted((data_folder() / "knowledge" / "questions").glob("*.yml"))
    return [item["question"] for path in files for item in yaml.safe_load(path.read_text(encoding="utf-8"))]


def main() -> int:
    """Run everything and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "scope.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    questions = read_questions()
    fitted = load_scope()
    begun = time.process_time()
    fit_scope(questions)
    took = time.process_time() - begun
    groups = {f"dialogue_{name}": item for name, item in dialogue_questions().items()}
    groups["knowledge_base"] = (knowledge_questions(), ("knowledge",))
    if real := ecgqa():
        groups["ecgqa"] = (real, ("ecg", "unknown_finding"))
    content: dict[str, Any] = {
        "what": "kinds of questions: rules, then a logistic regression on MiniLM's embeddings and words",
        "questions": dict(Counter(f"{item.kind}, {item.split}" for item in questions)),
        "thresholds": {"instruction": fitted.thresholds.instruction, "ecg": fitted.thresholds.ecg},
        "fit_cpu_seconds_with_cached_embeddings": round(took, 2),
        "validation": collection(questions, "validation"),
        "test": collection(questions, "test"),
        "written_by_others": others({name: item for name, item in groups.items() if item[0]}),
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "seed": SEED,
            "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "torch")},
        },
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, given.out)
    print(json.dumps({name: value for name, value in content.items() if name != "stamp"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
