"""Spelling: the layout over ECG tokens, what is right, the lesson, and reading that fades from right to spelled."""

import numpy as np
import pytest
import torch
from tiny_chat import ECG_TOKENS, HIDDEN, WIDTH, tiny_llama, tiny_tokenizer

from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.spelling import (
    RATE_WEIGHT,
    Reading,
    Spelling,
    place_weights,
    presence_scores,
    spelled_rates,
    train_spelling,
    with_words,
)
from ecgchat_lib.errors import ParameterError

PLACES = 16
NAN = float("nan")
PHRASES = ["sinus", "atrial"]


@pytest.fixture(scope="module")
def spelling():
    return Spelling.of(PHRASES, tiny_tokenizer(), PLACES)


@pytest.fixture(scope="module")
def embeddings():
    return tiny_llama().get_input_embeddings().weight.detach()


def decode(ids):
    return tiny_tokenizer().decode(ids)


def test_each_place_belongs_to_one_finding_and_cls_to_none(spelling):
    assert spelling.places == PLACES
    assert ((spelling.present >= 0).sum(0) <= 1).all()
    assert [decode(row[row >= 0]) for row in spelling.present] == [" sinus", " atrial"]
    owners = spelling.owners()
    assert owners[0] == -1
    assert (owners[list(spelling.rate_places)] == len(PHRASES)).all()
    assert sorted(set(owners.tolist())) == [-1, 0, 1, 2]


def test_right_words_say_what_is_there_what_isnt_and_how_fast(spelling):
    words = spelling.words(torch.tensor([[1.0, 0.0], [NAN, 1.0]]), torch.tensor([72.4, NAN]))
    own = [row >= 0 for row in spelling.present]
    assert decode(words[0, own[0]]) == " sinus"
    assert set(words[0, own[1]].tolist()) == {spelling.filler}
    assert (words[1, own[0]] == -1).all()
    assert decode(words[1, own[1]]) == " atrial"
    rate = list(spelling.rate_places)
    assert decode(words[0, rate]) == "072"
    assert (words[1, rate] == -1).all()
    assert (words[:, 0] == -1).all()


def test_what_doesnt_fit_is_an_error(spelling):
    with pytest.raises(ParameterError, match=r"need 6 places or more, but an ECG has 5"):
        Spelling.of(PHRASES, tiny_tokenizer(), 5)
    with pytest.raises(ParameterError, match="findings of shape"):
        spelling.words(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ParameterError, match="words of shape"):
        train_spelling(
            Projector(WIDTH, HIDDEN),
            torch.zeros(420, HIDDEN),
            torch.zeros(2, PLACES, WIDTH),
            torch.zeros(3, PLACES, dtype=torch.long),
            spelling,
        )


def test_long_phrases_lose_their_last_pieces(spelling):
    tokenizer = tiny_tokenizer()
    whole = [tokenizer(" " + phrase, add_special_tokens=False).input_ids for phrase in ("zzzz", "sinus")]
    assert len(whole[0]) > 3 > len(whole[1])
    short = Spelling.of(["zzzz", "sinus"], tokenizer, 1 + 3 + 3 + len(whole[1]))
    assert short.present[0][short.present[0] >= 0].tolist() == whole[0][:3]
    assert short.present[1][short.present[1] >= 0].tolist() == whole[1]


def test_reading_refuses_a_projector_that_would_round_the_words_numbers(embeddings):
    with pytest.raises(ParameterError, match=r"in torch\.bfloat16, expected torch\.float32"):
        Reading(Projector(WIDTH, HIDDEN).to(torch.bfloat16), embeddings)


def test_only_named_findings_are_shown(spelling):
    words = spelling.words(torch.tensor([[1.0, 0.0]]).repeat(3, 1), torch.full((3,), 60.0))
    right = torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    shown = spelling.shown(words, right)
    owners = spelling.owners()
    for row in range(3):
        assert torch.equal(shown[row][owners == row], words[row][owners == row])
        assert (shown[row][owners != row] == -1).all()


def test_both_sides_of_a_finding_weigh_the_same_up_to_the_limit(spelling):
    findings = torch.tensor([[1.0, 1.0]] + [[0.0, NAN]] * 9)
    words = spelling.words(findings, torch.full((10,), 60.0))
    place = int((spelling.present[0] >= 0).int().argmax())
    weights = place_weights(words, spelling, torch.ones(10))
    assert weights[0, place] == pytest.approx(weights[1:, place].sum().item())
    assert place_weights(words, spelling, torch.ones(10), most=2.0)[0, place] == 2.0
    drawn_often = place_weights(words, spelling, torch.tensor([9.0] + [1.0] * 9))
    assert drawn_often[0, place] == pytest.approx(1.0)
    other = int((spelling.present[1] >= 0).int().argmax())
    assert (weights[1:, other] == 0).all()
    assert (weights[:, list(spelling.rate_places)] == RATE_WEIGHT).all()


def test_a_projector_learns_to_spell_what_the_tokens_hold(spelling, embeddings):
    generator = torch.Generator().manual_seed(0)
    findings = (torch.rand(200, 2, generator=generator) < 0.5).float()
    rates = torch.where(torch.rand(200, generator=generator) < 0.5, 60.0, 90.0)
    ecg = 0.5 * torch.randn(200, PLACES, WIDTH, generator=generator)
    ecg[:, 0, :2] += 4 * findings
    ecg[:, 0, 2] += (rates - 75) / 5
    torch.manual_seed(0)
    projector = Projector(WIDTH, HIDDEN, places=PLACES)
    words = spelling.words(findings, rates)
    losses = train_spelling(projector, embeddings, ecg[:150], words[:150], spelling, steps=300, learning_rate=5e-3)
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])
    scores = presence_scores(projector, embeddings, ecg[150:], spelling)
    assert ((scores > 0.5) == findings[150:].bool()).float().mean() > 0.9
    assert (spelled_rates(projector, embeddings, ecg[150:], spelling) == rates[150:]).float().mean() > 0.9
    torch.manual_seed(0)
    again = Projector(WIDTH, HIDDEN, places=PLACES)
    assert losses == train_spelling(again, embeddings, ecg[:150], words[:150], spelling, steps=300, learning_rate=5e-3)


def test_words_are_scored_one_and_fillers_zero(spelling, embeddings):
    class Right(torch.nn.Module):
        up = torch.nn.Linear(1, 1)

        def forward(self, tokens):
            return embeddings[tokens[..., 0].long()]

    words = spelling.words(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([72.0, 134.0])).clamp_min(0)
    ecg = words[..., None].float()
    assert torch.allclose(presence_scores(Right(), embeddings, ecg, spelling), torch.tensor([[1.0, 0], [0, 1]]))
    assert spelled_rates(Right(), embeddings, ecg, spelling).tolist() == [72.0, 134.0]


def test_reading_shows_right_words_and_else_what_is_spelled(embeddings):
    torch.manual_seed(0)
    projector = Projector(WIDTH, HIDDEN, places=ECG_TOKENS)
    reading = Reading(projector, embeddings)
    tokens = torch.randn(2, ECG_TOKENS, WIDTH)
    words = torch.full((2, ECG_TOKENS), -1)
    words[0, 3], words[1, 1] = 17, 400
    out = reading(with_words(tokens, words))
    spelled = projector(tokens)
    assert torch.equal(out[0, 3], embeddings[17])
    assert torch.equal(out[1, 1], embeddings[400])
    assert torch.equal(out[words < 0], spelled[words < 0])
    out.square().sum().backward()
    assert projector.down.weight.grad.any()
    assert sorted(name for name, _ in reading.named_parameters()) == sorted(
        f"projector.{name}" for name, _ in projector.named_parameters()
    )


def test_places_are_projected_alike_alone_and_together():
    torch.manual_seed(0)
    projector = Projector(WIDTH, HIDDEN, places=ECG_TOKENS)
    tokens = torch.randn(3, ECG_TOKENS, WIDTH)
    drawn = torch.tensor([5, 2])
    assert torch.allclose(projector(tokens, drawn), projector(tokens)[:, drawn], atol=1e-6)
    changed = tokens.clone()
    changed[:, 0] += 1
    assert not torch.allclose(projector(changed)[:, 5], projector(tokens)[:, 5])
    with pytest.raises(ParameterError, match=f"got 6 tokens of each ECG, expected {ECG_TOKENS}"):
        projector(tokens[:, :6])
    assert len(projector(tokens[:0, :1])) == 0  # a conversation without an ECG
