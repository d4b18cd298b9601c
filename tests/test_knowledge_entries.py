"""The knowledge base: what the reader refuses, and the rules that the shipped entries keep."""

import re
from itertools import pairwise

import pytest

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.knowledge.entries import (
    KINDS,
    URGENCIES,
    Citation,
    heading_of,
    lines_of,
    load_entries,
    passage,
    sources,
    summary,
)
from ecgchat_lib.knowledge.metrics import sentences

CITED = {"one-2001": Citation("One 2001, on widths", "10.1000/one"), "two-2002": Citation("Two 2002, on rates", None)}

GOOD = """---
title: Wide complex
kind: conduction
aliases: [WC, broad complex]
codes: [CLBBB]
urgency: soon
sources: [one-2001]
related: [slow-rate]
---
The ventricles take long.
They do so on each beat.

## Criteria
- QRS of 120 ms or more
  in adults.
- Notched R wave in V6.

## Look-alikes
- 2:1 pacing: spikes before the complexes.

## Causes
- Disease of the bundle.

## What to do next
- Compare with an older tracing.
"""

OTHER = (
    GOOD.replace("Wide complex", "Slow rate")
    .replace("[WC, broad complex]", "[]")
    .replace("[CLBBB]", "[]")
    .replace("[slow-rate]", "[]")
    .replace("one-2001", "two-2002")
)


def base(tmp_path, text=GOOD, name="wide-complex", other=OTHER):
    (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    if other:
        (tmp_path / "slow-rate.md").write_text(other, encoding="utf-8")
    return tmp_path


def test_an_entry_is_read_as_it_stands(tmp_path):
    entries = load_entries(base(tmp_path), citations=CITED)
    assert list(entries) == ["slow-rate", "wide-complex"]
    entry = entries["wide-complex"]
    assert entry.statement == "The ventricles take long. They do so on each beat."
    assert entry.criteria == ("QRS of 120 ms or more in adults.", "Notched R wave in V6.")
    assert entry.names == ("Wide complex", "WC", "broad complex")
    assert entry.citations == (CITED["one-2001"],)
    assert str(entry.citations[0]) == "One 2001, on widths, doi 10.1000/one"
    assert lines_of(entry)[0] == entry.statement
    assert len(lines_of(entry)) == 6


def test_a_passage_holds_everything_but_the_citations(tmp_path):
    entry = load_entries(base(tmp_path), citations=CITED)["wide-complex"]
    text = passage(entry)
    assert text.startswith(heading_of(entry))
    assert all(line in text for line in lines_of(entry))
    assert "within hours" in text
    assert "10.1000" not in text


@pytest.mark.parametrize("limit", [20, 40, 75, 90, 400])
def test_a_summary_keeps_its_limit(tmp_path, limit):
    entry = load_entries(base(tmp_path), citations=CITED)["wide-complex"]
    text = summary(entry, limit)
    assert len(text) <= limit
    assert text.startswith("Wide")
    assert (entry.criteria[0] in text) == (limit == 400)


@pytest.mark.parametrize(
    ("old", "new", "field", "expected"),
    [
        ("title: Wide complex", "title: 12", "title", "one line of text"),
        ("title: Wide complex\n", "", "front matter", "exactly title"),
        ("title: Wide complex", "title: Wide complex\ntitle: Narrow", "title", "twice"),
        ("title: Wide complex", "title: Wide complex\nauthor: me", "author", "exactly"),
        ("kind: conduction", "kind: wiring", "kind", "one of rhythm"),
        ("kind: conduction", "kind: [conduction]", "kind", "one of rhythm"),
        ("[WC, broad complex]", "[2:1]", "aliases", "in quotes"),
        ("[WC, broad complex]", "WC", "aliases", "a list"),
        ("[WC, broad complex]", "[WC, WC]", "aliases", "twice"),
        ("[WC, broad complex]", "[Slow Rate]", "aliases", "belongs to one"),
        ("[CLBBB]", "[LBBB]", "codes", "no SCP-ECG statement"),
        ("urgency: soon", "urgency: later", "urgency", "none, routine"),
        ("[one-2001]", "[]", "sources", "at least 1"),
        ("[one-2001]", "[nobody-1999]", "sources", "nobody-1999"),
        ("[slow-rate]", "[fast-rate]", "related", "fast-rate"),
        ("[slow-rate]", "[wide-complex]", "related", "itself"),
        ("The ventricles take long.\nThey do so on each beat.", "", "statement", "one to three"),
        ("## Causes\n", "", "Criteria", "in this order"),
        ("## Causes", "## Reasons", "Reasons", "expected Criteria"),
        ("- Disease of the bundle.", "", "Causes", "is empty"),
        ("- Disease of the bundle.", "Disease of the bundle.", "Causes", "found 'Disease"),
        ("2:1 pacing: spikes", "pacing spikes", "Look-alikes", "how to tell it"),
        ("---\ntitle", "title", "no front matter", "'---'"),
        ("long.", "long.\x1b[31m", "character", "printable"),
        ("title: Wide complex", "title: [" + "[" * 2000, "not YAML", "Mend"),
        ("title: Wide complex", "title: !!python/object/apply:os.getcwd []", "not YAML", "Mend"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, old, new, field, expected):
    assert old in GOOD
    with pytest.raises(EcgChatError) as caught:
        load_entries(base(tmp_path, GOOD.replace(old, new)), citations=CITED)
    message = str(caught.value)
    assert "wide-complex.md" in message or "slow-rate.md" in message
    assert field in message
    assert expected in message


def test_bad_files_are_named(tmp_path):
    with pytest.raises(EcgChatError, match="holds no entry"):
        load_entries(tmp_path, citations=CITED)
    base(tmp_path, name="Wide_Complex")
    with pytest.raises(EcgChatError, match=r"Wide_Complex.*hyphens"):
        load_entries(tmp_path, citations=CITED)
    (tmp_path / "Wide_Complex.md").write_bytes(b"\xff\xfe")
    with pytest.raises(EcgChatError, match="UTF-8"):
        load_entries(tmp_path, citations=CITED)
    (tmp_path / "Wide_Complex.md").write_text("x" * 100_000)
    with pytest.raises(EcgChatError, match="64000 bytes"):
        load_entries(tmp_path, citations=CITED)


def test_a_changed_file_is_read_again(tmp_path):
    folder = base(tmp_path)
    assert load_entries(folder, citations=CITED)["wide-complex"].urgency == "soon"
    base(tmp_path, GOOD.replace("urgency: soon", "urgency: none"))
    assert load_entries(folder, citations=CITED)["wide-complex"].urgency == "none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected key"),
        ("a: {cite: x}", "cite and doi"),
        ("a: {cite: x, doi: 11.1/x}", "doi"),
        ("a: {cite: 5, doi: null}", "cite"),
        ("A B: {cite: x, doi: null}", "A B"),
        ("a: {cite: x, doi: null}\na: {cite: y, doi: null}", "twice"),
    ],
)
def test_sources_are_checked(tmp_path, text, message):
    path = tmp_path / "sources.yml"
    path.write_text(text)
    with pytest.raises(EcgChatError, match=message) as caught:
        sources(path)
    assert str(path) in str(caught.value)


# --- the shipped base ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load_entries()


def test_the_base_is_large_and_covers_its_kinds(shipped):
    assert len(shipped) >= 120
    assert {entry.kind for entry in shipped.values()} == set(KINDS)
    assert {entry.urgency for entry in shipped.values()} == set(URGENCIES)


def test_statements_have_one_to_three_sentences(shipped):
    for entry in shipped.values():
        assert 1 <= len(sentences(entry.statement)) <= 3, entry.id
        assert len(entry.statement) <= 600, entry.id


def test_criteria_hold_numbers(shipped):
    with_numbers = [entry for entry in shipped.values() if re.search(r"\d", " ".join(entry.criteria))]
    assert len(with_numbers) >= 0.8 * len(shipped)


def test_each_entry_is_linked(shipped):
    named = {name for entry in shipped.values() for name in entry.related}
    lonely = [entry.id for entry in shipped.values() if not entry.related and entry.id not in named]
    assert not lonely


def test_no_line_is_told_twice(shipped):
    """A sentence that two entries share was copied; short items ("Heart disease.") may recur."""
    lines = sorted(line for entry in shipped.values() for line in lines_of(entry) if len(line) > 80)
    assert not [one for one, other in pairwise(lines) if one == other]


def test_documents_have_dois_and_are_used(shipped):
    known = sources()
    assert all(citation.doi for citation in known.values())
    used = {citation for entry in shipped.values() for citation in entry.citations}
    assert len(set(known.values()) - used) <= 1  # the list may hold one document more than the entries need
