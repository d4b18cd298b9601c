"""The reader: what it looks at, what it lists, and that it is fitted and saved faithfully."""

import math

import numpy as np
import pytest
import torch
from tiny_chat import tiny_chat

from ecgchat_lib.chat.checkpoint import READER, load_chat_model, read_manifest, save_chat
from ecgchat_lib.chat.language_model import LanguageModel
from ecgchat_lib.chat.reader import FindingReader, fit_reader, measured_features, reader_features, signs_line
from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct.findings import FINDINGS, get_finding

NAMES = [finding.name for finding in FINDINGS]


def scores(**high):
    out = torch.full((len(FINDINGS),), -1.0)
    for name, value in high.items():
        out[NAMES.index(name)] = value
    return out


def test_the_likeliest_rhythm_and_all_other_findings_above_zero_are_listed():
    assert signs_line(scores(afib=-0.5, lvh=0.1, rbbb=2.0)) == (
        "Signs: atrial fibrillation, right bundle branch block, left ventricular hypertrophy"
    )
    assert signs_line(scores(sinus=3.0, afib=2.0)) == "Signs: sinus rhythm"


def test_unknown_values_are_flagged_and_not_zero():
    known = measured_features(
        Measurements(heart_rate_bpm=75, rr_ms=800, rr_sd_ms=8, pr_ms=160, qrs_ms=95, qtc_ms=420, regular=True)
    )
    unknown = measured_features(Measurements())
    assert len(known) == len(unknown) == 11
    assert known == [0, 0, 0, 0, 0, 0, 0, 0, pytest.approx(0.1), 0, 0]
    assert unknown == [0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1]
    assert all(math.isfinite(value) for value in unknown)


def problem(n=300, width=6):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, width, generator=generator)
    targets = torch.full((n, len(FINDINGS)), float("nan"))
    targets[:, NAMES.index("lvh")] = (features[:, 0] > 0.3).float()
    targets[: n // 3, NAMES.index("rbbb")] = (features[: n // 3, 1] > 0).float()
    rhythm = np.array(["sinus", "afib", "flutter"])[(features[:, 2:5].argmax(1)).numpy()]
    for name in ("sinus", "afib", "flutter"):
        targets[:, NAMES.index(name)] = torch.from_numpy((rhythm == name).astype(np.float32))
    return features, targets, rhythm


def test_it_learns_what_can_be_learned_and_its_left_out_scores_are_honest():
    features, targets, rhythm = problem()
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    groups = [str(k // 2) for k in range(len(features))]
    reader, left_out = fit_reader(features, targets, groups, strength=1.0)
    lvh = NAMES.index("lvh")
    assert ((reader(features)[:, lvh] > 0) == targets[:, lvh].bool()).float().mean() > 0.95
    lines = [signs_line(row) for row in left_out]
    right = [get_finding(name).phrase in line for name, line in zip(rhythm, lines, strict=True)]
    assert np.mean(right) > 0.85
    _, blind = fit_reader(noise, targets, groups, strength=1.0)
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(targets[:, lvh], blind[:, lvh]) < 0.65  # fitted on everything it would be near 1


def test_a_finding_that_nobody_has_is_never_listed():
    features, targets, _ = problem()
    reader, _ = fit_reader(features, targets, [str(k) for k in range(len(features))])
    assert (reader(features)[:, NAMES.index("long_qt")] < 0).all()


def test_features_are_cls_mean_of_patches_and_measured_values():
    tokens = torch.randn(2, 5, 3)
    found = reader_features(tokens, [Measurements(), Measurements(regular=False)])
    assert found.shape == (2, 17)
    torch.testing.assert_close(found[:, :3], tokens[:, 0])
    torch.testing.assert_close(found[:, 3:6], tokens[:, 1:].mean(1))
    with pytest.raises(ParameterError, match="fitted on 9 features, but got 17"):
        FindingReader(9)(found)


def test_it_is_saved_with_the_chat_and_refused_for_other_findings(tmp_path, monkeypatch):
    features, targets, _ = problem()
    chat = tiny_chat()
    chat.reader, _ = fit_reader(features, targets, [str(k) for k in range(len(features))])
    lm = LanguageModel(chat.language_model, chat.tokenizer, "language-model", "0" * 64, False)
    save_chat(chat, tmp_path, lm, encoder={"name": "x", "sha256": "ab" * 32})
    assert READER in read_manifest(tmp_path)["sha256"]
    loaded, _ = load_chat_model(tmp_path, language_model=lm)
    assert torch.equal(loaded.reader(features), chat.reader(features))
    from ecgchat_lib.chat import checkpoint

    monkeypatch.setattr(checkpoint, "FINDINGS", FINDINGS[::-1])
    with pytest.raises(EcgChatError, match="fitted for the findings sinus"):
        load_chat_model(tmp_path, language_model=lm)
