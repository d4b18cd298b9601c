"""`ecgchat train projector|chat|export` on a tiny language model and synthetic ECGs, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
import typer
from tiny_chat import tiny_llama, tiny_tokenizer
from typer.testing import CliRunner

from ecgchat_lib.chat import train_run
from ecgchat_lib.chat.checkpoint import load_chat_model, read_manifest
from ecgchat_lib.chat.language_model import LanguageModel
from ecgchat_lib.chat.train_cli import add_commands
from ecgchat_lib.chat.train_run import PROFILES, check_memory, plan_stage, stage_config
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.curves import read_curve
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Call the command with a tiny language model in SmolLM2's place."""

    def tiny(name, *, quantized, device, download=False):
        return LanguageModel(tiny_llama(), tiny_tokenizer(), name, f"{0:064d}", quantized)

    monkeypatch.setenv("ECGCHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train_run, "load_language_model", tiny)
    monkeypatch.setattr("ecgchat_lib.chat.export.load_language_model", tiny)
    monkeypatch.setattr(train_run, "known_config", lambda name: tiny_llama().config)
    small = replace(PROFILES["ci"], projector=replace(PROFILES["ci"].projector, max_length=2000), synthetic=2)
    small = replace(small, chat=replace(small.projector, evaluate_every=2))
    monkeypatch.setattr(train_run, "PROFILES", {**PROFILES, "ci": small})
    app = typer.Typer()
    add_commands(app)

    def call(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.mark.slow
def test_both_stages_and_the_export(run, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shown = run("projector", "--out", one)
    assert shown.exit_code == 0
    assert "on the device at most" in shown.stdout
    assert f"{one}: 4 steps, loss" in shown.stdout.splitlines()[-1]
    assert read_manifest(one)["about"]["stage"] == "projector"
    with pytest.raises(ParameterError, match="holds a run already"):
        run("projector", "--out", one)
    again = run("projector", "--out", one, "--resume")  # it is finished: nothing more is trained
    assert again.stdout.splitlines()[-1] == shown.stdout.splitlines()[-1]
    with pytest.raises(EcgChatError, match=r"other settings \(seed\)"):
        run("projector", "--out", one, "--resume", "--seed", 8, "--data", one / "data")

    assert run("chat", "--projector", one, "--out", two, "--data", one / "data", "--steps", 2).exit_code == 0
    manifest = read_manifest(two)
    assert manifest["grounding"] == ["measurements", "tokens"]
    assert manifest["preprocessing"]["fs"] == load_mini().config.encoder.fs
    assert manifest["about"]["train"]["steps"] == 2
    curve = read_curve(two / "run")
    assert len(curve) == 2
    assert "validation_loss" in curve[-1]
    tokens = list((tmp_path / "cache" / "ecg-tokens").rglob("*.safetensors"))
    assert len(tokens) == 1  # stage 2 found what stage 1 computed
    lm = LanguageModel(tiny_llama(), tiny_tokenizer(), "language-model", f"{0:064d}", False)
    chat, _ = load_chat_model(two, language_model=lm, trainable=True)
    assert any("lora_B" in name and p.any() for name, p in chat.named_parameters())
    with pytest.raises(EcgChatError, match="holds adapters already"):
        run("chat", "--projector", two, "--out", tmp_path / "three", "--data", one / "data")
    shown = run("export", two, "--out", tmp_path / "merged")
    assert "convert_hf_to_gguf.py" in shown.stdout
    assert json.loads((tmp_path / "merged" / "export.json").read_text())["encoder"] == manifest["encoder"]


def test_what_cannot_be_used_is_told(run, tmp_path):
    with pytest.raises(ParameterError, match="name them with --data"):
        run("projector", "--out", tmp_path, "--profile", "t4", "--language-model", "language-model")
    with pytest.raises(MissingPartError, match=r"no folder with train\.jsonl"):
        run("projector", "--out", tmp_path, "--data", tmp_path / "nothing")
    assert run("chat", "--out", tmp_path).exit_code == 2  # --projector is missing
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(MissingPartError, match=r"no manifest\.json"):
        run("chat", "--out", tmp_path, "--projector", tmp_path / "nothing", "--data", tmp_path)
    with pytest.raises(ParameterError, match="batch=0"):
        run("projector", "--out", tmp_path, "--batch", "0")


def test_fsdp_is_refused_before_anything_is_trained(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ParameterError, match=r"couldn't be saved .* ddp\.yaml"):
        run("projector", "--out", tmp_path)


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(train_run, "load_language_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(EcgChatError, match=r"the training needs .* are there"):
        run("projector", "--out", tmp_path, "--batch", 10**7)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("stage", ["projector", "chat"])
def test_each_profile_has_a_plan(name, stage):
    """From the configs' published sizes alone, nothing is loaded."""
    profile = PROFILES[name]
    device = "cpu" if name in ("ci", "cpu") else "cuda"
    planned = plan_stage(profile, stage, stage_config(profile, stage, {}), load_mini().config.encoder, device)
    most = {"ci": 6e9, "cpu": 6e9, "t4": 15e9, "h100": 80e9}[name]
    assert planned.fits(most), planned.lines()


def test_the_paper_s_recipe_stands_in_the_h100_profile():
    profile = PROFILES["h100"]
    assert profile.epochs == (1, 3)
    assert (profile.projector.learning_rate, profile.chat.learning_rate) == (2e-3, 2e-4)
    assert profile.chat.batch * profile.chat.accumulate == 16
    assert (profile.chat.warmup, profile.chat.max_length) == (0.03, 2048)
    assert (profile.rank, profile.alpha, profile.dropout) == (64, 16, 0.05)


def test_a_machine_with_too_little_memory_is_told(monkeypatch):
    profile = PROFILES["h100"]
    planned = plan_stage(profile, "chat", profile.chat, load_mini().config.encoder, "cpu")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 1e9})())
    with pytest.raises(EcgChatError, match=r"this machine, 1\.00 GB are there"):
        check_memory(planned, "cpu")
    assert torch.device(train_run.join_job().device).type in ("cpu", "cuda")
