"""Training the chat model in several processes, and one that is killed: the same result."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ecgchat_lib.chat.train_state import BEST, STATE, _read
from ecgchat_lib.coca.curves import read_curve

SCRIPT = str(Path(__file__).with_name("train_chat_process.py"))
CONFIGS = Path(sys.modules["ecgchat_lib.chat.train_state"].__file__ or "").parent / "accelerate"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def start(*words):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, words)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_bits(tmp_path):
    whole = start("whole", tmp_path / "whole")
    slow = start("slow", tmp_path / "killed")
    for line in slow.stdout:
        if line == "step 4\n":
            break
    os.kill(slow.pid, signal.SIGKILL)
    assert slow.wait() == -signal.SIGKILL
    slow.stdout.close()
    assert len(read_curve(tmp_path / "killed")) == 5
    assert start("whole", tmp_path / "killed").communicate()[0].split()[1] == "4"  # the state was at step 4
    assert whole.communicate()[0].split()[1] == "0"
    for name in (STATE, BEST):
        one, about = _read(tmp_path / "whole" / name)
        other, also = _read(tmp_path / "killed" / name)
        assert about == also
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_curve(tmp_path / "killed") == read_curve(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_work(tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    together = subprocess.run(
        [*launch, SCRIPT, "together", str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True, timeout=500
    )
    assert together.returncode == 0, together.stderr[-3000:]
    assert start("alone", tmp_path).wait() == 0
    for name in ("tokens", "means"):
        first, second = (torch.load(tmp_path / name / "2" / f"rank-{rank}.pt") for rank in (0, 1))
        alone = torch.load(tmp_path / name / "1" / "rank-0.pt")
        assert first["losses"] == second["losses"]
        assert all(torch.equal(p, second["weights"][key]) for key, p in first["weights"].items())
        assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        for key, weight in alone["weights"].items():
            torch.testing.assert_close(first["weights"][key], weight, atol=1e-4, rtol=1e-3)
        curve = read_curve(tmp_path / name / "2")  # one process alone wrote it
        assert [entry["step"] for entry in curve] == list(range(1, 7))
        values = [entry["validation_loss"] for entry in curve if "validation_loss" in entry]
        expected = [e["validation_loss"] for e in read_curve(tmp_path / name / "1") if "validation_loss" in e]
        assert values == pytest.approx(expected, abs=1e-5)
        assert len(values) == 3


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_launch_configs_hold_only_keys_that_accelerate_knows(path):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(written) - {"compute_environment"} <= set(vars(config))


def test_the_launcher_hands_the_fsdp_settings_on():
    """By the launcher's own way from file to environment; the plugin itself can't be made without a GPU."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(CONFIGS / "fsdp.yaml"), "script.py"]
    options, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert options.use_fsdp
    assert options.num_processes == 2
    told = prepare_multi_gpu_env(options)
    for setting, value in yaml.safe_load((CONFIGS / "fsdp.yaml").read_text(encoding="utf-8"))["fsdp_config"].items():
        name = setting.upper().replace("_LAYER_CLS_", "_CLS_")
        assert told[name].lower() == str(value).lower(), setting


def test_the_deepspeed_settings_are_accelerate_s():
    from dataclasses import fields

    from accelerate.utils import DeepSpeedPlugin

    settings = yaml.safe_load((CONFIGS / "deepspeed_zero2.yaml").read_text(encoding="utf-8"))["deepspeed_config"]
    assert set(settings) <= {field.name for field in fields(DeepSpeedPlugin)}
    assert settings["zero_stage"] == 2
