"""Prompts: every class has words, no class says another's, words are averaged, and CKEPE is read safely."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ecgchat_lib.datasets.labels import LABEL_SETS, STATEMENTS
from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError, RecordError
from ecgchat_lib.evaluate.prompts import (
    AGAINST_NORMAL,
    CKEPE_ERRORS,
    CKEPE_SHA256,
    SYNONYMS,
    TEMPLATES,
    ckepe_prompts,
    class_prompts,
    finding_vectors,
    grouped_prompts,
    label_set_scores,
    read_ckepe,
    statement_words,
)


def hashed(texts):
    """Random unit vectors, the same for the same text."""
    made = np.stack([np.random.default_rng(list(text.encode())).normal(size=16) for text in texts])
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_every_class_has_words_in_the_sets_order(name):
    prompts = class_prompts(name)
    assert tuple(prompts) == LABEL_SETS[name].classes
    for one, words in prompts.items():
        assert words, one
        assert len(words) == len(set(words))
        assert all(word == word.strip() and not word.endswith(".") for word in words)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_no_words_stand_for_two_classes(name):
    prompts = class_prompts(name)
    for one, words in prompts.items():
        for other, others in prompts.items():
            if one != other:
                assert not {w.lower() for w in words} & {w.lower() for w in others}, (one, other)


def test_the_report_writers_words_are_among_them():
    for code in STATEMENTS:
        assert set(PHRASES[code]) <= set(statement_words(code))
    assert set(SYNONYMS) <= set(STATEMENTS)
    with pytest.raises(EcgChatError, match="unknown statement"):
        statement_words("XYZ")


def test_ckepes_errors_are_not_ours():
    for name in LABEL_SETS:
        prompts = class_prompts(name)
        for one in {"NORM", "SR"} & set(prompts):
            assert not any("tachy" in word or "brady" in word for word in prompts[one])
    words = {code: " ".join(statement_words(code)).lower() for code in STATEMENTS}
    assert "bundle" not in words["LAFB"]
    assert "incomplete" not in words["CRBBB"] + words["CLBBB"]
    assert "right" not in words["CLBBB"]
    assert "left" not in words["CRBBB"]
    assert not any("let me know" in text for text in words.values())


def test_superclass_is_said_by_its_statements():
    groups = grouped_prompts("super")
    assert {code for code in groups["MI"] if code} == {c for c, s in STATEMENTS.items() if s.superclass == "MI"}
    assert groups["MI"][""][0] == "myocardial infarction"
    assert list(groups["NORM"]) == ["NORM"]
    with pytest.raises(EcgChatError, match="unknown label set"):
        class_prompts("all")


def test_a_findings_vector_is_the_mean_over_words_and_templates():
    asked = []

    def embed(texts):
        asked.append(len(texts))
        return hashed(texts)

    vectors = finding_vectors(embed, {"A": {"x": ("one", "two"), "y": ("three",)}, "B": {"": ("one",)}})
    mean = hashed([t.format(w) for w in ("one", "two") for t in TEMPLATES]).mean(axis=0)
    np.testing.assert_allclose(vectors["A"][0], mean / np.linalg.norm(mean))
    assert vectors["A"].shape == (2, 16)
    assert asked == [3 * len(TEMPLATES)]  # equal texts are embedded once


@pytest.mark.parametrize("name", LABEL_SETS)
def test_scores_by_hand(name):
    ecg = hashed(["a", "b", "c"])
    scores = label_set_scores(ecg, hashed, name)
    assert scores.shape == (3, len(LABEL_SETS[name].classes))
    vectors = finding_vectors(hashed, grouped_prompts(name))
    raw = {one: np.log(np.mean(np.exp(14.0 * ecg @ v.T), axis=1)) / 14.0 for one, v in vectors.items()}
    for k, one in enumerate(LABEL_SETS[name].classes):
        normal = raw["NORM"] if name in AGAINST_NORMAL and one != "NORM" else 0
        np.testing.assert_allclose(scores[:, k], raw[one] - normal)
        assert (raw[one] <= (ecg @ vectors[one].T).max(axis=1) + 1e-12).all()
        assert (raw[one] >= (ecg @ vectors[one].T).mean(axis=1) - 1e-12).all()


def test_other_prompts_stand_for_the_classes():
    ecg, own = hashed(["a", "b"]), {one: ["word " + one] for one in LABEL_SETS["rhythm"].classes}
    scores = label_set_scores(ecg, hashed, "rhythm", own)
    np.testing.assert_allclose(scores[:, 0], ecg @ finding_vectors(hashed, {"": {"": own["SR"]}})[""][0])
    with pytest.raises(ParameterError, match="SR"):
        label_set_scores(ecg, hashed, "rhythm", {**own, "SR": []})
    with pytest.raises(ParameterError, match="don't fit"):
        label_set_scores(ecg[:, :5], hashed, "rhythm")
    with pytest.raises(ParameterError, match="one row per text"):
        label_set_scores(ecg, lambda texts: hashed(texts)[:-1], "rhythm")


def test_ckepe_reader_refuses_what_is_not_ckepe(tmp_path):
    with pytest.raises(MissingPartError, match="MERL"):
        read_ckepe(tmp_path / "none.json")
    file = tmp_path / "prompts.json"
    for content in (b"\xff\xfe", b"{", b"[]", b"{}", b'{"NORM": 3}', b'{"NORM": " "}', b"[" * 100_000):
        file.write_bytes(content)
        with pytest.raises(RecordError):
            read_ckepe(file)
    file.write_text(json.dumps({"NORM": "normal ECG"}), encoding="utf-8")
    assert read_ckepe(file) == {"NORM": "normal ECG"}
    with pytest.raises(RecordError, match="no prompt for MI, STTC"):
        ckepe_prompts(file, "super")


@pytest.mark.real_data
def test_published_ckepe_covers_every_label_set():
    import hashlib

    root = os.environ.get("ECGCHAT_REAL_DATA")
    file = Path(root or "") / "text" / "merl_CKEPE_prompt.json"
    if not root or not file.is_file():
        pytest.skip("needs ECGCHAT_REAL_DATA with text/merl_CKEPE_prompt.json")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == CKEPE_SHA256
    assert len(read_ckepe(file)) == 131
    assert set(CKEPE_ERRORS) <= set(read_ckepe(file))
    for name, labels in LABEL_SETS.items():
        prompts = ckepe_prompts(file, name)
        assert tuple(prompts) == labels.classes
        assert label_set_scores(hashed(["a"]), hashed, name, prompts).shape == (1, len(labels.classes))
