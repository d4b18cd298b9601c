"""`ecgchat train coca` as a user meets it, at a tiny size: plan, curve, checkpoint, resume, one line for each fault."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from ecgchat_lib.coca.checkpoint import load_coca
from ecgchat_lib.coca.config import CaptionDecoderConfig, EcgCocaConfig, EcgEncoderConfig
from ecgchat_lib.coca.curves import read_curve
from ecgchat_lib.coca.plan import TrainPlan, plan_training
from ecgchat_lib.coca.workers import Workers
from ecgchat_lib.datasets.manifest_file import write_manifest
from ecgchat_lib.datasets.synthetic import write_synthetic
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.evaluate import train_run
from ecgchat_lib.evaluate.train_cli import train_app
from ecgchat_lib.evaluate.train_run import PROFILES, TrainProfile, manifest_records

TINY = EcgCocaConfig(
    EcgEncoderConfig(
        fs=50.0, z_score=False, keep_scale=True, patch_samples=50, width=16, layers=1, heads=2, embedding=8
    ),
    CaptionDecoderConfig(layers=1, heads=2),
    number_hidden=8,
)
TRAIN = replace(PROFILES["ci"].train, steps=6, batch=6, warmup=1, evaluate_every=3, save_every=2)


def call(*arguments: object):
    result = CliRunner().invoke(train_app, ["coca", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    profiles = {"ci": TrainProfile(TINY, TRAIN, synthetic=12), "cpu": TrainProfile(TINY, TRAIN)}
    monkeypatch.setattr(train_run, "PROFILES", profiles)


@pytest.mark.slow
def test_a_run_on_synthetic_ecgs_is_planned_kept_and_resumed(tmp_path):
    result = call("--out", tmp_path / "run", "--steps", 4, "--no-tensorboard")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[:4]] == ["model", "steps", "time", "memory"]
    assert "best: step" in result.stdout.splitlines()[-1]
    assert "zero-shot macro-AUC" in result.stderr
    curve = read_curve(tmp_path / "run")
    assert [entry["step"] for entry in curve] == [1, 2, 3, 4]
    assert [entry["step"] for entry in curve if "validation" in entry] == [3, 4]
    assert all(entry["numbers"] > 0 for entry in curve)
    model = load_coca(tmp_path / "run" / "best")
    assert model.encode_ecg(torch.randn(2, 12, 500)).shape == (2, 8)
    with pytest.raises(ParameterError, match="holds a run already"):
        call("--out", tmp_path / "run", "--steps", 4)
    again = call("--out", tmp_path / "run", "--steps", 4, "--no-tensorboard", "--resume")
    assert again.stdout.splitlines()[-1] == result.stdout.splitlines()[-1]
    with pytest.raises(EcgChatError, match=r"other settings \(steps"):
        call("--out", tmp_path / "run", "--steps", 5, "--resume")


@pytest.mark.slow
def test_a_run_on_a_manifest_leaves_out_what_cannot_be_read(tmp_path):
    manifest = write_synthetic(tmp_path / "data", 24, 3)
    victim = manifest.loc[manifest["split"] == "train"].iloc[0]
    for suffix in (".dat", ".mat"):
        if (tmp_path / "data" / f"{victim['path']}{suffix}").is_file():
            (tmp_path / "data" / f"{victim['path']}{suffix}").write_bytes(b"short")
    write_manifest(manifest, tmp_path / "m.parquet")
    result = call("--profile", "cpu", "--data", tmp_path / "m.parquet", "--out", tmp_path / "run", "--chunk", 4)
    assert result.exit_code == 0
    assert result.stderr.count("left out: ") == 1
    assert (tmp_path / "run" / "tensorboard").is_dir()
    told = []
    records = manifest_records(manifest, TINY.encoder, tmp_path / "run" / "data", told.append)
    assert told == []  # read once; found again
    assert records.windows.shape[1:] == (12, 500)
    assert len(records.rows("train")) == (manifest["split"] == "train").sum() - 1
    before = (tmp_path / "run" / "data" / "windows.npy").read_bytes()
    records.windows[0] += 1  # a reader may write into what it got: the file stays
    assert (tmp_path / "run" / "data" / "windows.npy").read_bytes() == before
    whole = call("--profile", "cpu", "--data", tmp_path / "data", "--dataset", "synthetic", "--out", tmp_path / "two")
    assert whole.exit_code == 0


def test_what_cannot_be_used_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(ParameterError, match="profile cpu trains on recordings: name them with --data"):
        call("--profile", "cpu", "--out", tmp_path / "run")
    with pytest.raises(ParameterError, match="is a folder: say which dataset"):
        call("--data", tmp_path, "--out", tmp_path / "run")
    with pytest.raises(MissingPartError, match="no such file or folder"):
        call("--data", tmp_path / "none.parquet", "--out", tmp_path / "run")
    with pytest.raises(ParameterError, match="batch=1 at least 2"):
        call("--batch", 1, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert call("--profile", "pc", "--out", tmp_path / "run").exit_code == 2


def test_a_manifest_without_validation_records_is_told(tmp_path):
    manifest = write_synthetic(tmp_path / "data", 3, 3)
    manifest["split"] = "train"
    with pytest.raises(EcgChatError, match="no record whose split is 'validation'"):
        manifest_records(manifest, TINY.encoder, tmp_path / "kept", print)


def test_the_plan_counts_memory_and_says_what_would_fit():
    from tiny_coca import CONFIG_SMALL, equal, model_and_pairs, weights

    model, pairs = model_and_pairs(dropout=0.3)
    before, noise = weights(model), torch.get_rng_state()
    alone = Workers(torch.device("cpu"))
    whole, part, deep = (
        plan_training(model, pairs, replace(CONFIG_SMALL, batch=10, **extra), alone)
        for extra in ({}, {"chunk": 5}, {"checkpoint_blocks": True})
    )
    assert equal(before, weights(model))
    assert torch.equal(noise, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert whole.state_bytes == 5 * sum(p.numel() * 4 for p in model.parameters())
    assert part.activation_bytes < 0.7 * whole.activation_bytes
    assert deep.activation_bytes < 0.8 * whole.activation_bytes
    assert len(whole.lines()) == 4
    small = TrainPlan(1000, 10, 64, 64, 1, 1.0, 10**9, 4 * 10**9, 2 * 10**9, "cpu")
    with pytest.raises(EcgChatError, match=r"needs about 5.0 GB.*2.0 GB are free. --chunk 16 would fit"):
        small.check()
    with pytest.raises(EcgChatError, match="Choose a smaller profile"):
        replace(small, state_bytes=3 * 10**9).check()


def test_every_profile_can_be_built():
    for name, profile in PROFILES.items():
        config = profile.train
        assert config.batch % (config.chunk or 1) == 0, name
        assert config.warmup < config.steps
        assert json.loads(json.dumps(profile.model.as_dict()))
