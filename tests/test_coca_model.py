"""The encoder, the decoder and the losses: sizes, causality, gradients, and equality with open_clip's parts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss, CoCaLoss
from open_clip.transformer import VisionTransformer

from ecgchat_lib.coca.config import (
    MINI,
    PAPER,
    PAPER_ENCODER_PARAMETERS,
    CaptionDecoderConfig,
    EcgCocaConfig,
    EcgEncoderConfig,
)
from ecgchat_lib.coca.encoder import EcgEncoder, standardize_leads
from ecgchat_lib.coca.losses import caption_loss, contrastive_loss, shared_targets
from ecgchat_lib.coca.model import EcgCoca, count_parameters
from ecgchat_lib.coca.objective import Objective
from ecgchat_lib.coca.pairs import Batch, StatementBatch
from ecgchat_lib.coca.preprocess import front_end
from ecgchat_lib.coca.step import batch_losses
from ecgchat_lib.coca.text import SPECIAL, CaptionTokenizer, TextBatch
from ecgchat_lib.errors import ParameterError

TINY = EcgCocaConfig(
    encoder=EcgEncoderConfig(
        fs=20.0, seconds=4.0, band=None, patch_samples=8, width=24, layers=2, heads=3, embedding=16
    ),
    decoder=CaptionDecoderConfig(vocabulary=40, context=12, layers=2, heads=3),
    text_width=10,
)
# With all that ours adds: the scale kept beside the signal, a network on the text's states, and one for numbers.
FULL = replace(TINY, encoder=replace(TINY.encoder, z_score=False, keep_scale=True), token_hidden=8, number_hidden=8)


def tiny_model(seed: int = 0, config: EcgCocaConfig = TINY) -> EcgCoca:
    torch.manual_seed(seed)
    return EcgCoca(config, [*SPECIAL, *(f"w{k}" for k in range(config.decoder.vocabulary - 4))])


def some_texts(batch: int, seed: int = 0) -> TextBatch:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor([[800.0, 160, 90, 380, 420, 0.1, 1.0, 0.3]]) * (1 + 0.1 * torch.rand(batch, 1))
    return TextBatch(torch.randn(batch, 5, 10, generator=generator), torch.ones(batch, 5), numbers)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_papers_encoder_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        assert count_parameters(EcgEncoder(PAPER.encoder)) == PAPER_ENCODER_PARAMETERS
    assert (PAPER.encoder.samples, PAPER.encoder.tokens) == (5000, 101)


def test_mini_has_101_tokens_and_an_embedding():
    model = EcgCoca(MINI).eval()
    with torch.inference_mode():
        out = model.encoder(torch.randn(2, 12, 1000))
    assert out.tokens.shape == (2, 101, MINI.encoder.width)
    assert out.embedding.shape == (2, MINI.encoder.embedding)


def test_patch_dropout_only_in_training():
    encoder = EcgEncoder(MINI.encoder)
    ecg = torch.randn(2, 12, 1000)
    kept = round(100 * (1 - MINI.encoder.patch_dropout))
    assert encoder.train()(ecg).tokens.shape[1] == 1 + kept
    assert encoder.eval()(ecg).tokens.shape[1] == 101


def test_encoder_equals_open_clips_vision_transformer():
    """A 1-D ViT is a ViT over an image one pixel high: the same weights give the same embedding."""
    config = TINY.encoder
    ours = EcgEncoder(config).eval()
    theirs = VisionTransformer(
        image_size=(1, config.samples),
        patch_size=(1, config.patch_samples),
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        output_dim=config.embedding,
    ).eval()
    theirs.conv1 = torch.nn.Conv2d(
        12, config.width, (1, config.patch_samples), stride=(1, config.patch_samples), bias=False
    )
    weights = {name: value for name, value in ours.state_dict().items() if not name.startswith("stem")}
    weights["conv1.weight"] = weights["conv1.weight"].unsqueeze(2)
    theirs.load_state_dict(weights)  # strict: the names are the same too
    ecg = torch.randn(3, 12, config.samples)
    with torch.inference_mode():
        torch.testing.assert_close(ours(ecg).embedding, theirs(ecg.unsqueeze(2)), rtol=1e-5, atol=1e-6)


def test_wrong_shapes_are_told():
    with pytest.raises(ParameterError, match=r"reads \(batch, 12, 80\).*got \(2, 8, 80\)"):
        tiny_model().encoder(torch.zeros(2, 8, 80))
    with pytest.raises(ParameterError, match="does not divide the window"):
        EcgEncoderConfig(patch_samples=7)
    with pytest.raises(ParameterError, match="does not divide width"):
        EcgEncoderConfig(heads=5)
    with pytest.raises(ParameterError, match="do not fit the decoder's context"):
        tiny_model().decoder(torch.zeros(1, 13, dtype=torch.long), torch.zeros(1, 10, 24))


@pytest.mark.parametrize("position", [0, 3, 10])
def test_no_future_piece_moves_an_earlier_logit(position):
    model = tiny_model().eval()
    ecg = torch.randn(2, 12, 80)
    generator = torch.Generator().manual_seed(position)
    pieces = torch.randint(4, 40, (2, 12), generator=generator)
    changed = pieces.clone()
    changed[:, position + 1 :] = torch.randint(4, 40, changed[:, position + 1 :].shape, generator=generator)
    with torch.inference_mode():
        patches = model.caption_patches(model.encoder(ecg).tokens)
        before, after = model.decoder(pieces, patches), model.decoder(changed, patches)
    assert torch.equal(before[:, : position + 1], after[:, : position + 1])  # exactly: not one bit
    assert not torch.equal(before[:, position + 1 :], after[:, position + 1 :])


def test_the_decoder_looks_at_the_ecg():
    model = tiny_model().eval()
    pieces = torch.randint(4, 40, (2, 12))
    with torch.inference_mode():
        one, two = (
            model.decoder(pieces, model.caption_patches(model.encoder(torch.randn(2, 12, 80)).tokens)) for _ in "ab"
        )
    assert not torch.allclose(one[:, 0], two[:, 0])


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(2, 9), dim=st.integers(2, 20), scale=st.floats(1, 100), seed=st.integers(0, 10**6))
def test_contrastive_loss_equals_open_clips(batch, dim, scale, seed):
    ecg, text = unit(batch, dim, seed=seed), unit(batch, dim, seed=seed + 1)
    ours = contrastive_loss(ecg, text, torch.tensor(scale))
    torch.testing.assert_close(ours, ClipLoss()(ecg, text, torch.tensor(scale)))


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(2, 6), length=st.integers(2, 9), vocabulary=st.integers(3, 30), seed=st.integers(0, 10**6))
def test_both_losses_equal_open_clips(batch, length, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    ecg, text = unit(batch, 8, seed=seed), unit(batch, 8, seed=seed + 1)
    logits = torch.randn(batch, length, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (batch, length), generator=generator)
    labels[0, 0] = 1  # at least one label that counts
    scale = torch.tensor(14.3)
    theirs = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)(ecg, text, logits, labels, scale)
    objective = Objective()  # what is trained, with the original's weights
    contrastive = objective.together(ecg, text[:, None], scale, range(batch))
    ours = objective.total(contrastive, {"caption": caption_loss(logits, labels)})
    torch.testing.assert_close(ours, sum(theirs))


def test_targets_of_distinct_reports_are_the_identity():
    ecg, text, scale = unit(5, 8), unit(5, 8, seed=1), 10.0
    assert torch.equal(shared_targets("abcde"), torch.eye(5))
    torch.testing.assert_close(
        contrastive_loss(ecg, text, scale, shared_targets("abcde")), contrastive_loss(ecg, text, scale)
    )


def test_shared_targets_spread_over_equal_reports():
    expected = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    assert torch.equal(shared_targets(["normal", "AF", "normal"]), expected)


def test_a_perfect_match_of_shared_reports_costs_only_their_entropy():
    """Two equal reports: no model can do better than ln 2, and one-hot targets ask for less than that."""
    vectors = torch.eye(2).repeat_interleave(2, dim=0)  # records 0, 1 alike; 2, 3 alike
    loss = contrastive_loss(vectors, vectors, 100.0, shared_targets([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("config", [TINY, FULL], ids=["linear text map", "with tokens and numbers"])
def test_gradients_reach_every_trained_part(config):
    model = tiny_model(config=config).train()
    statements = StatementBatch(some_texts(3, seed=1), torch.eye(4)[:, :3], torch.zeros(3))
    batch = Batch(torch.randn(4, 12, 80), some_texts(4), torch.randint(4, 40, (4, 13)), list("abcd"), statements)
    objective = Objective(numbers=float(config.number_hidden > 0), statements=1.0)
    batch_losses(model, batch, objective)["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_each_loss_reaches_its_own_side():
    """The caption loss alone moves no text tower; the contrastive loss alone moves no decoder."""
    model = tiny_model(config=FULL).train()
    out = model(torch.randn(4, 12, 80), some_texts(4), torch.randint(4, 40, (4, 13)))
    caption_loss(out.logits, out.labels).backward(retain_graph=True)
    assert all(p.grad is None for p in model.text_tower.parameters())
    model.zero_grad(set_to_none=True)
    contrastive_loss(out.ecg, out.text, out.scale).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.decoder.parameters())


def test_padding_and_absent_words_add_nothing_to_a_text():
    model = tiny_model(config=FULL).eval()
    text = some_texts(2)
    longer = text._replace(
        states=torch.cat([text.states, torch.full((2, 3, 10), 9.0)], dim=1),
        mask=torch.cat([text.mask, torch.zeros(2, 3)], dim=1),
    )
    torch.testing.assert_close(model.encode_text(longer), model.encode_text(text))
    bare = text.without_words()
    torch.testing.assert_close(model.text_tower(bare), model.text_tower.numbers(text.numbers))
    assert not torch.allclose(model.encode_text(text.without_numbers()), model.encode_text(text))


def test_standardized_leads_and_their_scale_are_the_ecg_again():
    ecg = torch.randn(3, 12, 50) * torch.rand(3, 12, 1)
    ecg[1, 4] = 0.7  # flat
    scaled, scale = standardize_leads(ecg)
    deviation = scale[:, :12].exp() * 0.2
    back = scaled * deviation[..., None] + ecg.mean(dim=2, keepdim=True)
    torch.testing.assert_close(back, ecg, rtol=1e-4, atol=1e-5)
    assert scale[1, 4] == scale[1, 16] == 0
    assert not scaled[1, 4].any()


def test_only_the_scale_differs_for_a_recording_that_was_scaled_before():
    """Its tokens but CLS start alike, so raw and processed recordings are read by the same weights."""
    encoder = EcgEncoder(FULL.encoder).eval()
    ecg = torch.randn(2, 12, 80)
    processed = standardize_leads(ecg)[0]
    raw, scaled = encoder.embed_patches(ecg), encoder.embed_patches(processed)
    torch.testing.assert_close(raw[:, 1:], scaled[:, 1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(raw[:, 0], scaled[:, 0])


def test_temperature_is_clamped():
    model = tiny_model()
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-6)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_temperature()
    assert model.logit_scale.exp().item() == pytest.approx(100.0, rel=1e-5)


def test_caption_writes_until_the_end_piece():
    model = tiny_model().eval()
    texts = model.caption(torch.randn(3, 12, 80))
    assert len(texts) == 3
    assert all(len(text.split()) <= TINY.decoder.context for text in texts)
    with torch.no_grad():
        model.decoder.transformer.text_projection.zero_()
        model.decoder.transformer.text_projection[:, 3] = 1.0
        model.decoder.transformer.ln_final.weight.zero_()
        model.decoder.transformer.ln_final.bias.fill_(1.0)
    assert model.caption(torch.randn(2, 12, 80)) == ["", ""]


def test_a_model_without_vocabulary_says_so():
    with pytest.raises(ParameterError, match="no vocabulary"):
        EcgCoca(TINY).eval().caption(torch.zeros(1, 12, 80))
    with pytest.raises(ParameterError, match="the vocabulary has 5"):
        EcgCoca(TINY, [*SPECIAL, "a"])


def test_config_survives_json():
    import json

    for config in (TINY, MINI, PAPER):
        assert EcgCocaConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(ParameterError, match="does not fit this version"):
        EcgCocaConfig.from_dict({"encoder": {"band": None, "color": "red"}, "decoder": {}, "text_width": 3})


def test_tokenizer_goes_there_and_back():
    tokenizer = CaptionTokenizer([*SPECIAL, "normal", "ecg", ".", "e", "c", "##g", "##c", "a"])
    ids = tokenizer.encode(["Normal ECG.", "normal ecg normal ecg normal"], 6)
    assert ids.tolist() == [[2, 4, 5, 6, 3, 0], [2, 4, 5, 4, 5, 4]]  # the second is cut, so it has no end
    assert tokenizer.decode(ids[0].tolist()) == "normal ecg."
    assert tokenizer.encode(["zebra"], 3).tolist() == [[2, 1, 3]]  # unknown
    with pytest.raises(ParameterError, match="starts with"):
        CaptionTokenizer(["a", "b"])


class TestFrontEnd:
    config = replace(MINI.encoder, z_score=True)

    def test_scales_each_lead(self):
        signals = np.random.default_rng(0).normal(size=(3, 12, 5000)) * np.arange(1, 13)[None, :, None]
        windows = front_end(signals, self.config)
        assert windows.shape == (3, 12, 1000)
        assert windows.dtype == torch.float32
        torch.testing.assert_close(windows.std(dim=2, correction=0), torch.ones(3, 12), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(windows.mean(dim=2), torch.zeros(3, 12), rtol=0, atol=1e-3)

    def test_flat_and_missing_leads_stay_zero(self):
        signals = np.random.default_rng(0).normal(size=(1, 12, 5000))
        signals[0, 3], signals[0, 7] = 0.4, np.nan
        windows = front_end(signals, self.config)
        assert not windows[0, [3, 7]].any()
        assert torch.isfinite(windows).all()

    def test_takes_slow_drift_and_hum_out(self):
        time = np.arange(5000) / 500
        beat = np.sin(2 * np.pi * 8 * time)
        dirty = beat + 3 * np.cos(2 * np.pi * 0.05 * time) + 2 * np.sin(2 * np.pi * 100 * time)
        clean, cleaned = (front_end(np.tile(x, (1, 12, 1)), self.config)[0, 0] for x in (beat, dirty))
        middle = slice(200, 800)
        assert np.corrcoef(clean[middle], cleaned[middle])[0, 1] > 0.98

    def test_other_rates_and_lengths(self):
        assert front_end(np.random.default_rng(0).normal(size=(2, 12, 1250)), self.config, fs=125.0).shape == (
            2,
            12,
            1000,
        )
        short = front_end(np.random.default_rng(0).normal(size=(1, 12, 2500)), self.config)
        assert short.shape == (1, 12, 1000)
        assert not short[..., 500:].any()
        assert front_end(np.zeros((0, 12, 5000)), self.config).shape == (0, 12, 1000)
        with pytest.raises(ParameterError, match="Add the batch axis"):
            front_end(np.zeros((12, 5000)), self.config)


def test_open_clip_is_the_version_this_was_written_for():
    assert open_clip.__version__.startswith("3.")
