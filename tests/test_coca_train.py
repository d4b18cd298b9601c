"""Training, resuming, and checkpoints."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from test_coca_model import TINY, tiny_model
from tiny_coca import CONFIG_SMALL, EVERYTHING, equal, model_and_pairs, noisy, weights

from ecgchat_lib.coca.checkpoint import CONFIG, MANIFEST, VOCABULARY, WEIGHTS, load_coca, read_manifest, save_coca
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.pairs import PairedEcgs
from ecgchat_lib.coca.text import TextBatch
from ecgchat_lib.coca.train import TrainConfig, build_optimizer, learning_rate, train_coca
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError


def test_both_losses_go_down():
    model, pairs = model_and_pairs()
    history = train_coca(model, pairs, TrainConfig(steps=60, batch=8, learning_rate=3e-3, warmup=5)).history
    for name in ("contrastive", "caption"):
        first, last = (sum(h[name] for h in part) / 10 for part in (history[:10], history[-10:]))
        assert last < 0.7 * first, name


@pytest.mark.parametrize("killed_after", [1, 3, 5, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, killed_after):
    from dataclasses import replace

    config = replace(CONFIG_SMALL, chunk=killed_after % 3, objective=EVERYTHING)  # in pieces too
    whole, pairs = model_and_pairs(dropout=0.3, rich=True)
    straight = train_coca(whole, pairs, config, augment=noisy, validate=lambda m: 0.0)
    killed, pairs = model_and_pairs(dropout=0.3, rich=True)
    train_coca(killed, pairs, config, folder=tmp_path, augment=noisy, validate=lambda m: 0.0, until=killed_after)
    torch.rand(5)  # whatever happened to the global generator in between
    resumed, pairs = model_and_pairs(seed=99, dropout=0.3, rich=True)  # its own weights are replaced
    again = train_coca(resumed, pairs, config, folder=tmp_path, augment=noisy, validate=lambda m: 0.0)
    assert equal(weights(whole), weights(resumed))
    assert straight.history == again.history


def test_a_kill_between_two_saves_repeats_the_steps(tmp_path, monkeypatch):
    """A real kill: the process dies in step 5, the last saved state is of step 3."""
    whole, pairs = model_and_pairs()
    train_coca(whole, pairs, CONFIG_SMALL)
    dying, pairs = model_and_pairs()
    draw, calls = PairedEcgs.draw, []

    def dies(self, size, generator):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw(self, size, generator)

    monkeypatch.setattr(PairedEcgs, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        train_coca(dying, pairs, CONFIG_SMALL, folder=tmp_path)
    monkeypatch.undo()
    resumed, pairs = model_and_pairs(seed=5)
    train_coca(resumed, pairs, CONFIG_SMALL, folder=tmp_path)
    assert equal(weights(whole), weights(resumed))


def test_resuming_with_other_settings_is_an_error(tmp_path):
    from dataclasses import replace

    model, pairs = model_and_pairs()
    train_coca(model, pairs, CONFIG_SMALL, folder=tmp_path, until=2)
    with pytest.raises(EcgChatError, match=r"other settings \(learning_rate\)"):
        train_coca(model, pairs, replace(CONFIG_SMALL, learning_rate=1.0), folder=tmp_path)
    bigger = tiny_model(config=replace(TINY, encoder=replace(TINY.encoder, embedding=20)))
    bigger.report_encoder = model.report_encoder
    with pytest.raises(EcgChatError, match="a model of other sizes"):
        train_coca(bigger, pairs, CONFIG_SMALL, folder=tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"not a state")
    with pytest.raises(EcgChatError, match="not a readable training state"):
        train_coca(model, pairs, CONFIG_SMALL, folder=tmp_path)


def test_the_best_validation_is_kept(tmp_path):
    model, pairs = model_and_pairs()
    values = iter([0.6, 0.9, 0.7])
    config = TrainConfig(steps=6, batch=4, warmup=1, evaluate_every=2)
    result = train_coca(model, pairs, config, folder=tmp_path, validate=lambda m: next(values))
    assert (result.best_step, result.best_value) == (4, 0.9)
    assert read_manifest(tmp_path / "best")["about"] == {"step": 4, "validation": 0.9}
    assert [h["validation"] for h in result.history if "validation" in h] == [0.6, 0.9, 0.7]


def test_validation_sees_averaged_weights_and_training_goes_on_with_its_own():
    model, pairs = model_and_pairs()
    seen = []
    train_coca(model, pairs, CONFIG_SMALL, validate=lambda m: seen.append(weights(m)) or 0.0)
    assert not equal(seen[-1], weights(model))
    other, pairs = model_and_pairs()
    train_coca(other, pairs, CONFIG_SMALL)
    assert equal(weights(other), weights(model))


def test_weight_decay_spares_biases_norms_and_temperature():
    model, _ = model_and_pairs()
    decayed, spared = build_optimizer(model, CONFIG_SMALL).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert spared["weight_decay"] == 0.0
    assert decayed["weight_decay"] == 0.1
    assert {names[id(p)] for p in spared["params"]} >= {
        "logit_scale",
        "encoder.ln_pre.weight",
        "encoder.class_embedding",
    }
    assert not any("bias" in names[id(p)] or ".ln_" in names[id(p)] for p in decayed["params"])


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(steps=110, warmup=10, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)


def test_a_loss_that_is_no_number_is_told():
    model, pairs = model_and_pairs()
    pairs.windows[:] = math.nan
    with pytest.raises(EcgChatError, match="step 0: the loss is nan"):
        train_coca(model, pairs, CONFIG_SMALL)


def test_bad_pairs_and_settings_are_told():
    model, pairs = model_and_pairs()
    with pytest.raises(ParameterError, match="differ in length"):
        PairedEcgs(torch.zeros(3, 12, 80), [["w1"]] * 2, model)
    with pytest.raises(ParameterError, match="lack a text"):
        PairedEcgs(torch.zeros(2, 12, 80), [["w1"], []], model)
    with pytest.raises(ParameterError, match="larger than the 12 records"):
        pairs.draw(13, torch.Generator())
    with pytest.raises(ParameterError, match="at least 2"):
        TrainConfig(batch=1)


def test_a_batch_has_different_records_and_follows_the_weights():
    model, plain = model_and_pairs()
    pairs = PairedEcgs(plain.windows, plain.texts, model, weights=[1.0] * 6 + [0.0] * 6)
    batch = pairs.draw(6, torch.Generator().manual_seed(0))
    assert len(set(batch.keys)) == 6
    assert set(batch.keys) == {pairs.texts[k][0] for k in range(6)}


class TestCheckpoint:
    def test_round_trip_gives_equal_outputs(self, tmp_path):
        model, _ = model_and_pairs()
        model.eval().requires_grad_(False)  # torch takes another attention kernel where gradients may be wanted
        loaded = load_coca(save_coca(model, tmp_path / "x", about={"seed": 7}))
        text = TextBatch(torch.randn(2, 5, 10), torch.ones(2, 5), torch.full((2, 8), torch.nan))
        inputs = torch.randn(2, 12, 80), text, torch.randint(4, 40, (2, 9))
        with torch.inference_mode():
            for one, two in zip(model(*inputs), loaded(*inputs), strict=True):
                assert torch.equal(one, two)
        assert loaded.tokenizer.vocabulary == model.tokenizer.vocabulary
        assert not any(p.requires_grad for p in loaded.parameters())
        assert read_manifest(tmp_path / "x")["about"] == {"seed": 7}
        assert [p.name for p in (tmp_path / "x").iterdir() if p.name.startswith(".")] == []

    def test_half_precision_halves_the_file(self, tmp_path):
        model, _ = model_and_pairs()
        save_coca(model, tmp_path / "full")
        save_coca(model, tmp_path / "half", dtype=torch.float16)
        sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("full", "half")]
        assert sizes[1] < 0.6 * sizes[0]
        loaded = load_coca(tmp_path / "half")
        assert all(p.dtype == torch.float32 for p in loaded.parameters())

    @pytest.mark.parametrize("name", [WEIGHTS, CONFIG, VOCABULARY])
    @pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
    def test_a_damaged_file_is_an_error_that_names_it(self, tmp_path, name, harm):
        folder = save_coca(tiny_model(), tmp_path / "x")
        content = bytearray((folder / name).read_bytes())
        if harm == "gone":
            (folder / name).unlink()
        else:
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content if harm == "flip" else content[:-5])
        with pytest.raises(EcgChatError, match=name) as caught:
            load_coca(folder)
        assert isinstance(caught.value, MissingPartError) == (harm == "gone")

    def test_a_missing_or_foreign_manifest_is_an_error(self, tmp_path):
        with pytest.raises(MissingPartError, match=MANIFEST):
            load_coca(tmp_path / "nowhere")
        folder = save_coca(tiny_model(), tmp_path / "x")
        (folder / MANIFEST).write_text(json.dumps({"format": "other", "sha256": {}}))
        with pytest.raises(EcgChatError, match="another format"):
            load_coca(folder)
        (folder / MANIFEST).write_text("{")
        with pytest.raises(EcgChatError, match="not a"):
            load_coca(folder)

    def test_weights_of_another_size_are_an_error(self, tmp_path):
        import hashlib
        from dataclasses import replace

        folder = save_coca(tiny_model(), tmp_path / "x")
        bigger = save_coca(
            tiny_model(config=replace(TINY, encoder=replace(TINY.encoder, embedding=20))), tmp_path / "y"
        )
        shutil.copy(bigger / WEIGHTS, folder / WEIGHTS)
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["sha256"][WEIGHTS] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(EcgChatError, match="does not fit"):
            load_coca(folder)

    def test_an_unfinished_write_is_not_taken_for_a_checkpoint(self, tmp_path, monkeypatch):
        import ecgchat_lib.coca.checkpoint as module

        folder = save_coca(tiny_model(), tmp_path / "x")
        monkeypatch.setattr(module, "save_file", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_coca(tiny_model(1), folder)
        with pytest.raises(MissingPartError):
            load_coca(folder)

    def test_no_vocabulary_no_checkpoint(self, tmp_path):
        with pytest.raises(EcgChatError, match="without a vocabulary"):
            save_coca(EcgCoca(TINY), tmp_path / "x")
