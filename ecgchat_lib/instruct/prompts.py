"""What language models are told when they reword drafts: a prompt for diagnoses, one for dialogues, one for a sentence.

The first two stand for the paper's two GPT-4o prompts; they say what those are reported to ask, in other words.
Taught in: 10 §6.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ecgchat_lib.instruct.wording import measured_line

if TYPE_CHECKING:
    from ecgchat_lib.instruct.drafts import Draft

_RULES = (
    "Use only the facts given. Name no finding that they don't name, and no number that they don't hold. Where the "
    "question asks about something that is absent, refute it. Where the facts leave something open, say so. Keep every "
    "finding, every negation and every number of the draft answer."
)
DIAGNOSIS_PROMPT = (
    "You are a cardiologist who explains an ECG to the person it was taken from. You are given the report, "
    "the coded statements, the measured values, one question, and a draft answer that is correct but stiff. "
    f"Write the answer anew. {_RULES} Write the diagnosis as: Your ECG shows finding; finding; finding. End "
    "with the verdict: It's a normal ECG, It's a borderline ECG, or It's an abnormal ECG. Return JSON and "
    "nothing else, of the form {'answers': ['...']} with double quotes."
)
DIALOGUE_PROMPT = (
    "You are a cardiologist in a conversation about one or two ECGs. You are given the report, the coded "
    "statements and the measured values of each, and the questions of the whole conversation, each with a "
    "draft answer that is correct but stiff. Write each answer anew, as a person would say it who remembers "
    f"what was said before. {_RULES} Answer each in one to three sentences, and where the draft begins with "
    "yes or no, begin so too. With two ECGs, say in each sentence which one you speak of: the first, the "
    "second, both or neither. Return JSON and nothing else, of the form {'answers': ['...', '...']} with "
    "double quotes: one answer for each question, in their order."
)
REWRITE_PROMPT = (
    "Rewrite the sentence in other words. Keep every medical term, every number and every 'no' or 'not'. "
    "Add nothing. Answer with the sentence alone."
)


def facts_text(draft: Draft) -> str:
    """Return what is known of a draft's recordings, as text for a language model."""
    lines = []
    for number, ((statements, measured), report) in enumerate(zip(draft.facts, draft.reports, strict=True)):
        name = f"ECG {number + 1}" if len(draft.facts) > 1 else "ECG"
        stated = ", ".join(f"{code} ({'stated' if p == 0 else f'{p:g} %'})" for code, p in statements) or "none"
        lines += [f"{name}, report: {report or 'none'}", f"{name}, statements: {stated}"]
        if measured is not None:
            lines.append(f"{name}, {measured_line(measured)}")
    return "\n".join(lines)


def messages_for(draft: Draft) -> list[dict[str, str]]:
    """Return the messages that ask a chat model for all answers of a draft at once."""
    asked = [{"question": one.turn.question, "draft answer": one.turn.answer} for one in draft.rounds]
    prompt = DIAGNOSIS_PROMPT if draft.kind == "diagnosis" else DIALOGUE_PROMPT
    content = f"{facts_text(draft)}\n\n{json.dumps(asked, ensure_ascii=False, indent=1)}"
    return [{"role": "system", "content": prompt}, {"role": "user", "content": content}]


def rewrite_messages(answer: str) -> list[dict[str, str]]:
    """Return the messages that ask a small chat model for one answer in other words."""
    return [{"role": "system", "content": REWRITE_PROMPT}, {"role": "user", "content": answer}]


def read_answers(text: str) -> list[str] | None:
    """Return the answers in a model's reply, or None if it isn't the JSON that was asked for.

    A fence around it (```json) is taken off, as many models add one.
    """
    inner = text.strip()
    if inner.startswith("```"):
        inner = inner.removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        found = json.loads(inner)
    except (ValueError, RecursionError):
        return None
    answers = found.get("answers") if isinstance(found, dict) else found
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        return None
    return answers
