"""Questions: what the reader refuses, the two halves, and the rules that the shipped questions keep."""

import hashlib
from collections import Counter

import pytest

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.knowledge.entries import LINE_PARTS, load_entries, passage
from ecgchat_lib.knowledge.metrics import correct
from ecgchat_lib.knowledge.naming import Names
from ecgchat_lib.knowledge.questions import QUESTION_KINDS, Question, grouped, load_questions

GOOD = """
- id: q-width
  question: How wide is it?
  entries: [left-bundle-branch-block]
  facts:
    - any: ["120 ms", "three small"]
  kind: single
- id: q-rate
  question: How fast is it?
  entries: [sinus-tachycardia, sinus-bradycardia]
  facts:
    - any: ["100"]
    - any: ["60"]
  kind: compare
"""


@pytest.fixture(scope="module")
def shipped():
    return load_entries()


@pytest.fixture(scope="module")
def asked(shipped):
    return load_questions(entries=shipped)


def test_questions_are_read(tmp_path, shipped):
    (tmp_path / "one.yml").write_text(GOOD)
    rate, width = load_questions(tmp_path, entries=shipped)
    assert width == Question(
        "q-width", "How wide is it?", ("left-bundle-branch-block",), (("120 ms", "three small"),), "single"
    )
    assert rate.facts == (("100",), ("60",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id: q-width", "id: width", "q-"),
        ("id: q-width", "id: q-rate", "another question"),
        ("question: How wide is it?", "question: ''", "question"),
        ("question: How wide is it?", "asked: How wide is it?", "exactly id"),
        ("[left-bundle-branch-block]", "[nothing-such]", "nothing-such"),
        ("[left-bundle-branch-block]", "[]", "one to 6"),
        ("kind: single", "kind: single\n  part: middle", "one of statement"),
        ("kind: single", "kind: single\n  part: [criteria]", "one of statement"),
        ("kind: single", "kind: single\n  parts: criteria", "exactly id"),
        ("kind: single", "kind: hard", "one of single"),
        ('["120 ms", "three small"]', "[120]", "in quotes"),
        ('["120 ms", "three small"]', "[]", "one to 20"),
        ('    - any: ["120 ms", "three small"]', '    - all: ["120 ms"]', "any"),
        ('["120 ms", "three small"]', '["120 ms", "120 ms"]', "twice"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, shipped, old, new, message):
    assert old in GOOD
    (tmp_path / "one.yml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(EcgChatError, match=message) as caught:
        load_questions(tmp_path, entries=shipped)
    assert "one.yml" in str(caught.value)


def test_no_questions(tmp_path, shipped):
    with pytest.raises(EcgChatError, match="no question"):
        load_questions(tmp_path, entries=shipped)
    with pytest.raises(ParameterError, match="tune, test"):
        load_questions(split="train", entries=shipped)


def test_a_part_is_read(tmp_path, shipped):
    (tmp_path / "one.yml").write_text(GOOD.replace("kind: single", "kind: single\n  part: criteria"))
    rate, width = load_questions(tmp_path, entries=shipped)
    assert (rate.part, width.part) == ("", "criteria")


def test_questions_about_the_same_entries_are_one_group():
    def ask(name, *gold):
        return Question(name, "?", gold, (("x",),), "single")

    made = grouped([ask("q-a", "1"), ask("q-b", "1", "2"), ask("q-c", "2"), ask("q-d", "1", "3", "4"), ask("q-e", "5")])
    assert [question.group for question in made] == ["q-a", "q-a", "q-a", "q-d", "q-e"]  # q-d shares one of three
    assert len({question.split for question in made[:3]}) == 1


def test_near_copies_stay_in_one_half(asked):
    group = {question.id: question.group for question in asked}
    for one, other in (
        ("q-torsade-qtc", "q-longqt-danger"),
        ("q-mirror-heart-or-cables", "q-cmp-dextro-cables"),
        ("q-mirror-heart-or-cables", "q-upside-down-lead-one"),
        ("q-regular-on-digoxin", "q-digitalis-regular"),
    ):
        assert group[one] == group[other]
    assert max(Counter(group.values()).values()) <= 0.1 * len(asked)


def test_halves_follow_the_hash_of_the_group_alone(asked, shipped):
    for question in asked:
        even = int(hashlib.sha256(question.group.encode()).hexdigest()[-1], 16) % 2 == 0
        assert question.split == ("tune" if even else "test")
    halves = [load_questions(entries=shipped, split=split) for split in ("tune", "test")]
    assert sorted(q.id for half in halves for q in half) == [q.id for q in asked]
    assert min(map(len, halves)) >= 0.4 * len(asked)


# --- the shipped questions -------------------------------------------------------------------------------------------


def test_there_are_enough_of_each_kind(asked, shipped):
    assert len(asked) >= 120
    kinds = Counter(question.kind for question in asked)
    assert set(kinds) == set(QUESTION_KINDS)
    assert min(kinds.values()) >= 10
    assert len({question.question for question in asked}) == len(asked)
    assert len({name for question in asked for name in question.entries}) >= 0.6 * len(shipped)


def test_gold_facts_stand_in_gold_entries(asked, shipped):
    for question in asked:
        text = "\n".join(passage(shipped[name]) for name in question.entries)
        for group in question.facts:
            assert correct(text, [group]), (question.id, group)


def test_no_question_holds_its_whole_answer(asked):
    """Or an answer that echoes the question would be right."""
    assert not [question.id for question in asked if correct(question.question, question.facts)]


def test_questions_that_name_an_entry(asked, shipped):
    """They name a gold entry, and most ask for a part of it that holds a fact."""
    names = Names(shipped)
    named = [question for question in asked if question.id.startswith("q-named-")]
    assert 60 <= len(named) <= 80
    assert {question.part for question in named} >= set(LINE_PARTS)
    for question in named:
        assert {name.id for name in names.find(question.question)} & set(question.entries), question.id
