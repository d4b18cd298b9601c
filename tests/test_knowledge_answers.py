"""Answers: what is quoted stands in an entry, with its source; what is written comes from what was shown."""

import pytest

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.knowledge.answers import best_lines, messages_for, quote, write
from ecgchat_lib.knowledge.entries import lines_of, load_entries
from ecgchat_lib.knowledge.metrics import faithfulness
from ecgchat_lib.knowledge.retrieve import Hit

ASKED = "How wide must the QRS be in a complete block of the left bundle?"


@pytest.fixture(scope="module")
def hits():
    shipped = load_entries()
    return [Hit(shipped[name], 1.0) for name in ("left-bundle-branch-block", "hyperkalemia")]


def test_a_quote_is_a_line_of_an_entry_with_its_source(hits):
    answer = quote(ASKED, hits)
    assert 1 <= len(answer.lines) <= 3
    assert answer.quoted
    for line in answer.lines:
        assert line.text in lines_of(line.entry)
        assert line.text.rstrip(".") in answer.text
        assert line.entry.citations[0].doi in str(answer)
    assert answer.lines[0].entry.id == "left-bundle-branch-block"
    assert "QRS" in answer.text
    assert set(answer.citations) >= set(answer.lines[0].entry.citations)
    assert faithfulness(answer.text, [line.text for line in answer.lines]) == 1


def test_margin_and_number_of_lines(hits):
    assert len(quote(ASKED, hits, most=1).lines) == 1
    assert len(quote(ASKED, hits, margin=0.0).lines) == 1
    many = best_lines(ASKED, hits, most=1000, margin=9.0)
    assert len(many) == sum(len(lines_of(hit.entry)) for hit in hits)
    assert [line.score for line in many] == sorted((line.score for line in many), reverse=True)
    first = best_lines(ASKED, hits, most=1, bonus=0.5)[0].score - best_lines(ASKED, hits, most=1, bonus=0.0)[0].score
    assert first == pytest.approx(0.5)


def test_nothing_found_is_nothing_quoted():
    answer = quote(ASKED, [])
    assert (answer.text, answer.lines, answer.citations) == ("", (), ())


def test_questions_are_checked(hits):
    with pytest.raises(ParameterError, match="expected a question"):
        quote(" ", hits)
    with pytest.raises(ParameterError, match="at least one line"):
        quote(ASKED, hits, most=0)


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
