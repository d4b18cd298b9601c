"""One batch's gradients: in chunks, with forgotten blocks and in half precision, beside the plain way."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from tiny_coca import CONFIG_SMALL, EVERYTHING, equal, model_and_pairs, noisy, weights

from ecgchat_lib.coca.curves import Curves, read_curve
from ecgchat_lib.coca.step import Precision, RowsOfNoise, batch_gradients, batch_losses
from ecgchat_lib.coca.train import step_randomness, train_coca
from ecgchat_lib.coca.workers import Workers
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError

CPU = torch.device("cpu")
ALONE = Workers(CPU)


def gradients_of(chunk: int, dropout: float, rich: bool, size: int = 10, checkpoint: bool = False):
    """Return the losses and the gradients of the same batch, computed in chunks."""
    model, pairs = model_and_pairs(dropout=dropout, rich=rich)
    model.train()
    model.encoder.transformer.grad_checkpointing = model.decoder.transformer.grad_checkpointing = checkpoint
    with step_randomness(7, 3) as generator:
        batch = pairs.draw(size, generator)
        objective = EVERYTHING if rich else replace(EVERYTHING, numbers=0.0)
        losses = batch_gradients(model, batch, objective, chunk=chunk, workers=ALONE, precision=Precision("no", CPU))
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in losses.items()}, found


def assert_same(one, two):
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    assert one[1].keys() == two[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, two[1][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rich", [False, True], ids=["plain", "all losses"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("chunk", [1, 3, 5, 9])
def test_chunks_give_the_gradients_of_the_whole_batch(chunk, dropout, rich):
    assert_same(gradients_of(chunk, dropout, rich), gradients_of(0, dropout, rich))


def test_a_mean_of_chunk_losses_would_be_another_thing():
    """The test above can fail: without the cache, a chunk's contrastive loss knows only the chunk's reports."""
    model, pairs = model_and_pairs(rich=True)
    batch = pairs.draw(10, torch.Generator().manual_seed(0))
    whole = batch_losses(model, batch, EVERYTHING)["contrastive"]
    halves = [batch_losses(model, batch.rows(*part), EVERYTHING)["contrastive"] for part in ((0, 5), (5, 10))]
    assert (sum(halves) / 2 - whole).abs() > 0.3


def test_other_patches_are_dropped_in_other_steps_and_records():
    noise = []
    for rows in (range(0, 4), range(0, 2), range(2, 4)):
        torch.manual_seed(1)
        with RowsOfNoise(rows, 4):
            noise.append(torch.randn(len(rows), 20))
    assert torch.equal(noise[0], torch.cat(noise[1:]))
    assert not torch.equal(noise[1], noise[2])
    with RowsOfNoise(range(2), 4):
        assert torch.rand(7).shape == (7,)
        assert torch.zeros(2, 3).shape == (2, 3)


@pytest.mark.parametrize("chunk", [0, 4])
def test_forgotten_blocks_give_the_same_gradients_and_keep_less(chunk):
    plain, forgetful = (gradients_of(chunk, 0.4, True, checkpoint=on) for on in (False, True))
    assert_same(plain, forgetful)
    kept = []
    for on in (False, True):
        model, pairs = model_and_pairs(rich=True)
        model.train().encoder.transformer.grad_checkpointing = on
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            model.encoder(pairs.draw(8, torch.Generator().manual_seed(0)).ecg)
        kept.append(sum(saved))
    assert kept[1] < 0.6 * kept[0]


def test_a_training_in_chunks_ends_where_the_plain_one_does():
    models = []
    for extra in ({}, {"chunk": 3, "checkpoint_blocks": True}):
        model, pairs = model_and_pairs(dropout=0.3, rich=True)
        train_coca(model, pairs, replace(CONFIG_SMALL, batch=8, objective=EVERYTHING, **extra), augment=noisy)
        models.append(weights(model))
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk", [0, 3])
def test_fp16_scales_its_gradients_and_gives_them_back_unscaled(chunk):
    """On a CPU: the arithmetic of autocast and scaler is the same there."""
    gradients = []
    for name in ("no", "fp16"):
        model, pairs = model_and_pairs(rich=True)
        precision = Precision(name, CPU)
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=name == "fp16")  # nothing overflows
        batch = pairs.draw(8, torch.Generator().manual_seed(0))
        batch_gradients(model.train(), batch, EVERYTHING, chunk=chunk, workers=ALONE, precision=precision)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]) / precision.scaler.get_scale())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.05, atol=0.02 * gradients[0].abs().max().item())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes_with_its_scaler(tmp_path, precision):
    config = replace(CONFIG_SMALL, precision=precision, chunk=3)
    whole, pairs = model_and_pairs()
    straight = train_coca(whole, pairs, config)
    killed, pairs = model_and_pairs()
    train_coca(killed, pairs, config, folder=tmp_path, until=3)
    resumed, pairs = model_and_pairs(seed=9)
    again = train_coca(resumed, pairs, config, folder=tmp_path)
    assert equal(weights(whole), weights(resumed))
    assert straight.history == again.history
    assert ("loss_scale" in straight.history[0]) == (precision == "fp16")


def test_an_overflow_leaves_the_step_out_and_halves_the_scale():
    model, pairs = model_and_pairs()
    before = weights(model)
    real = model.encoder.forward

    def overflowing(ecg):
        out = real(ecg)
        out.embedding.register_hook(lambda gradient: gradient * torch.inf)
        return out

    model.encoder.forward = overflowing
    history = train_coca(model, pairs, replace(CONFIG_SMALL, precision="fp16", average=0.0), until=2).history
    assert equal(before, weights(model))
    assert history[1]["loss_scale"] == history[0]["loss_scale"] / 2


def test_settings_that_make_no_sense_are_told():
    with pytest.raises(ParameterError, match="precision='fp8'"):
        replace(CONFIG_SMALL, precision="fp8")
    with pytest.raises(ParameterError, match="chunk=-1"):
        replace(CONFIG_SMALL, chunk=-1)
    with pytest.raises(ParameterError, match="split evenly among 3 processes"):
        Workers(CPU, 0, 3).rows(10)


def test_rows_of_all_processes_make_up_the_batch():
    rows = [list(Workers(CPU, index, 4).rows(20)) for index in range(4)]
    assert [row for part in rows for row in part] == list(range(20))


def test_a_curve_is_cut_back_to_the_state_and_a_torn_line_is_left_out(tmp_path):
    curves = Curves(tmp_path, [{"loss": 3.0}, {"loss": 2.0}])
    curves.add(3, {"loss": 1.0, "validation": 0.5})
    curves.close()
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    assert [entry["step"] for entry in read_curve(tmp_path)] == [1, 2, 3]
    Curves(tmp_path, [{"loss": 3.0}]).close()
    assert read_curve(tmp_path) == [{"step": 1, "loss": 3.0}]
    (tmp_path / "curve.jsonl").write_text("loss\n")
    with pytest.raises(EcgChatError, match="not a curve"):
        read_curve(tmp_path)
    with pytest.raises(MissingPartError, match="no such file"):
        read_curve(tmp_path / "other")


def test_without_tensorboard_a_training_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # an import of it fails
    model, pairs = model_and_pairs()
    with pytest.warns(UserWarning, match="TensorBoard isn't installed"):
        train_coca(model, pairs, CONFIG_SMALL, folder=tmp_path, until=2, tensorboard=True)
    assert len(read_curve(tmp_path)) == 2


def test_resuming_with_other_chunks_is_told(tmp_path):
    model, pairs = model_and_pairs()
    train_coca(model, pairs, CONFIG_SMALL, folder=tmp_path, until=2)
    with pytest.raises(EcgChatError, match=r"other settings \(chunk\)"):
        train_coca(model, pairs, replace(CONFIG_SMALL, chunk=2), folder=tmp_path)
