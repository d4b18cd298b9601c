"""Names: what a question names, what is left of it, and the part that it asks for."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgchat_lib.knowledge.entries import LINE_PARTS, load_entries
from ecgchat_lib.knowledge.naming import Names, asked_part, without_intent


@pytest.fixture(scope="module")
def names():
    return Names(load_entries())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What are the criteria for LBBB?", ["left-bundle-branch-block"]),
        ("left bundle-branch BLOCK", ["left-bundle-branch-block"]),
        ("incomplete LBBB", ["incomplete-left-bundle-branch-block"]),  # the longest name
        ("RBBB with LAFB", ["bifascicular-block"]),
        ("AF and PVCs", ["atrial-fibrillation", "ventricular-premature-beats"]),
        ("The man is at rest", []),  # AT is a name only as it is written
        ("Is af dangerous?", []),
        ("Mobitz II or Mobitz I?", ["mobitz-2-av-block", "mobitz-1-av-block"]),
        ("2:1 AV block", ["two-to-one-av-block"]),
        ("peaked T-wave", ["peaked-t-waves"]),
        ("", []),
        ("!?", []),
    ],
)
def test_names_are_found_from_left_to_right(names, text, expected):
    found = names.find(text)
    assert [name.id for name in found] == expected
    assert all(name.stop <= other.start for name, other in pairwise(found))


def test_each_name_is_found(names):
    for entry in load_entries().values():
        for name in entry.names:
            assert [one.id for one in names.find(f"What is {name}?")] == [entry.id], name


def test_coverage_by_hand(names):
    asked = names.read("What causes hyperkalemia in kidney failure?")
    assert asked.part == "causes"
    assert asked.rest == "What causes in kidney failure?"
    assert asked.content == ("kidney", "failure")
    named, others = names.idf("hyperkalemia"), names.idf("kidney") + names.idf("failure")
    assert asked.coverage == pytest.approx({"hyperkalemia": named / (named + others)})
    assert names.read("What are the criteria for hyperkalemia?").coverage == {"hyperkalemia": 1.0}
    both = names.read("hyperkalemia or hypokalemia").coverage
    assert sum(both.values()) == pytest.approx(1.0)


def test_a_title_goes_before_an_alias():
    entries = {name: load_entries()[name] for name in ("asystole", "hyperkalemia")}
    entries["asystole"] = replace(entries["asystole"], aliases=("Hyperkalemias",))
    assert [name.id for name in Names(entries).find("hyperkalemia")] == ["hyperkalemia"]


@pytest.mark.parametrize(
    ("question", "part"),
    [
        ("What should I do in asystole?", "next_steps"),
        ("How is it treated?", "next_steps"),
        ("How can it be told apart from an infarction?", "look_alikes"),
        ("What mimics a posterior infarction?", "look_alikes"),
        ("Why does it happen?", "causes"),
        ("What are the reasons for low voltage?", "causes"),
        ("How wide must the QRS be?", "criteria"),
        ("What does it look like?", "criteria"),
        ("What is takotsubo syndrome?", "statement"),
        ("Hyperkalemia", ""),
    ],
)
def test_the_part_that_is_asked_for(question, part):
    assert asked_part(question) == part


def test_words_of_intent_are_left_out():
    assert without_intent("What are the criteria for hyperkalemia?") == "hyperkalemia"
    assert without_intent("What are the criteria?") == "What are the criteria?"


@given(st.text())
def test_any_text_can_be_read(names, text):
    asked = names.read(text)
    assert asked.part in ("", *LINE_PARTS)
    assert all(0 < share <= 1 for share in asked.coverage.values())
    assert [text[name.start : name.stop].strip() for name in asked.names] == [
        text[name.start : name.stop] for name in asked.names
    ]
