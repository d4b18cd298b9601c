"""Answers: what is quoted stands in an entry, with its source; what is written comes from what was shown."""

from dataclasses import replace

import pytest

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.knowledge.answers import (
    MOST_OF_PART,
    QUOTING,
    Quoting,
    best_lines,
    fits,
    messages_for,
    number_units,
    quote,
    write,
)
from ecgchat_lib.knowledge.entries import LINE_PARTS, lines_of, load_entries, parts_of
from ecgchat_lib.knowledge.metrics import faithfulness
from ecgchat_lib.knowledge.naming import Names
from ecgchat_lib.knowledge.retrieve import Hit, embed

ASKED = "How wide must the QRS be if the left bundle is out of action?"


@pytest.fixture(scope="module")
def shipped():
    return load_entries()


@pytest.fixture(scope="module")
def hits(shipped):
    return [Hit(shipped[name], score) for name, score in (("left-bundle-branch-block", 1.0), ("hyperkalemia", 0.5))]


@pytest.fixture(scope="module")
def names(shipped):
    return Names(shipped)


def shown(answer):
    return [f"{line.entry.title}, {LINE_PARTS[line.part]}: {line.text}" for line in answer.lines]


def test_a_quote_is_a_line_of_an_entry_with_its_source(hits):
    answer = quote(ASKED, hits)
    assert 1 <= len(answer.lines) <= 3
    assert answer.quoted
    for line in answer.lines:
        assert (line.part, line.text) in parts_of(line.entry)
        assert line.text.rstrip(".") in answer.text
        assert line.entry.title in answer.text
        assert line.entry.citations[0].doi in str(answer)
    assert answer.lines[0].entry.id == "left-bundle-branch-block"
    assert "QRS" in answer.text
    assert set(answer.citations) >= set(answer.lines[0].entry.citations)
    assert faithfulness(answer.text, shown(answer)) == 1


def test_each_document_is_named_once(hits):
    told = str(quote("LBBB or hyperkalemia?", hits))
    for entry in (hit.entry for hit in hits):
        assert entry.title in told
        for citation in entry.citations:
            assert told.count(str(citation)) == 1
    assert "[1]" in told


def test_a_whole_part_is_quoted_where_it_is_asked_for(hits, shipped):
    answer = quote("What are the causes of hyperkalemia?", hits)
    assert [line.text for line in answer.lines] == list(shipped["hyperkalemia"].causes)
    assert answer.text.startswith("Hyperkalemia, causes: Kidney failure.")
    answer = quote("What should I do in LBBB?", hits)
    assert [line.text for line in answer.lines] == list(shipped["left-bundle-branch-block"].next_steps)
    assert len(quote("What are the criteria of hyperkalemia?", hits).lines) <= MOST_OF_PART


def test_a_named_entry_is_quoted_alone_and_two_both(hits):
    assert {line.entry.id for line in quote("Tell me about hyperkalemia", hits).lines} == {"hyperkalemia"}
    both = quote("How does hyperkalemia differ from LBBB?", hits).lines
    assert {line.entry.id for line in both[:2]} == {"hyperkalemia", "left-bundle-branch-block"}
    everything = replace(QUOTING, focus=1.01, ratio=0.9, floor=-1.0)
    assert quote("Tell me about hyperkalemia", hits, how=everything).entries[0].id == "left-bundle-branch-block"


def test_far_from_everything_is_nothing_quoted(hits):
    above = replace(QUOTING, floor=0.999)
    assert quote(ASKED, hits, how=above).text == ""
    assert quote("What causes hyperkalemia?", hits, how=above).text  # what is named needs no likeness
    assert quote("Which wine goes with fish?", hits).lines == ()


def test_what_a_line_is_chosen_by(hits, names):
    asked = names.read(ASKED)
    found = fits(ASKED, hits, asked, names)
    assert [one.text for one in found] == [line for hit in hits for line in lines_of(hit.entry)]
    first = next(one for one in found if one.part == "criteria")
    vector = embed([ASKED])[0]
    assert first.cosines[0] == pytest.approx(float(embed([f"{first.entry.title}: {first.text}"])[0] @ vector), abs=1e-5)
    assert first.in_part
    assert first.number  # 120 ms
    assert {one.ratio for one in found} == {1.0, 0.5}
    how = Quoting(lexical=0.5, entry=0.25, part=0.125, number=0.0625)
    assert first.score(how) == pytest.approx(first.cosines[0] + 0.5 * first.lexical + 0.25 + 0.125 + 0.0625)
    assert any(0 < one.lexical <= 1 for one in found)


def test_margin_and_number_of_lines(hits):
    assert len(quote(ASKED, hits, most=1).lines) == 1
    assert len(quote(ASKED, hits, how=replace(QUOTING, margin=0.0)).lines) == 1
    many = best_lines(ASKED, hits, most=1000)
    assert len(many) == sum(len(lines_of(hit.entry)) for hit in hits)
    assert [line.score for line in many] == sorted((line.score for line in many), reverse=True)


@pytest.mark.parametrize(
    ("question", "units"),
    [
        ("How wide is the QRS?", {"ms", "minutes", "days"}),
        ("How fast are the atrial waves?", {"bpm"}),
        ("Between which angles does the axis lie?", {"degrees"}),
        ("How high must the ST segment be?", {"mm", "mv"}),
        ("How many leads?", set()),
        ("What is a capture beat?", None),
    ],
)
def test_the_unit_that_is_asked_for(question, units):
    assert number_units(question) == units


def test_nothing_found_is_nothing_quoted():
    answer = quote(ASKED, [])
    assert (answer.text, answer.lines, answer.citations, str(answer)) == ("", (), (), "")


def test_questions_are_checked(hits):
    with pytest.raises(ParameterError, match="expected a question"):
        quote(" ", hits)
    with pytest.raises(ParameterError, match="at least one line"):
        quote(ASKED, hits, most=0)
    with pytest.raises(ParameterError, match="title or part"):
        Quoting(front="end")


def test_what_a_model_is_asked(hits):
    asked = []

    def writer(messages):
        asked.append(messages)
        return " It is wide.\n"

    answer = write(ASKED, hits, writer, notes=4)
    (messages,) = asked
    assert messages == messages_for(ASKED, answer.lines)
    assert [one["role"] for one in messages] == ["system", "user"]
    assert len(answer.lines) == 4
    assert all(line.text in messages[1]["content"] for line in answer.lines)
    assert messages[1]["content"].endswith(f"Question: {ASKED}")
    assert answer.text == "It is wide."
    assert not answer.quoted
    assert answer.entries[0].citations[0].doi in str(answer)
    assert write(ASKED, [], writer).lines == ()
    assert "Notes" not in asked[1][1]["content"]
    assert "notes" not in asked[1][0]["content"]
