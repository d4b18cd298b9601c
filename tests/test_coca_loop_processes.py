"""Real processes: one that is killed in the middle of a step and resumed, and two that train together through gloo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_coca import noisy
from train_process import CONFIG, one_step

from ecgchat_lib.coca.curves import read_curve
from ecgchat_lib.coca.train import train_coca
from ecgchat_lib.coca.workers import Workers

SCRIPT = Path(__file__).with_name("train_process.py")


def start(mode: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD", "LOCAL_", "MASTER_"))}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent), "TQDM_DISABLE": "1", **environment}
    command = [sys.executable, str(SCRIPT), mode, str(folder)]
    return subprocess.Popen(command, env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def state(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    with safe_open(folder / "state.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["state"]  # noqa: SIM118


@pytest.mark.slow
def test_killed_in_the_middle_of_a_step_and_resumed(tmp_path):
    """SIGKILL, in step 5 of 8, two steps after the last saved state: nothing can be tidied up."""
    pytest.importorskip("tensorboard")
    whole, killed = start("whole", tmp_path / "whole"), start("slow", tmp_path / "killed")
    for line in killed.stdout:
        if line.strip() == "in step 5":
            killed.send_signal(signal.SIGKILL)
            break
    assert killed.wait(timeout=60) == -signal.SIGKILL
    killed.communicate()
    assert len(read_curve(tmp_path / "killed")) == 4  # of which the state knows three
    finish(whole)
    finish(start("whole", tmp_path / "killed"))
    (one, told), (two, also_told) = state(tmp_path / "whole"), state(tmp_path / "killed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert told == also_told  # step, history, best
    curves = [(tmp_path / name / "curve.jsonl").read_bytes() for name in ("whole", "killed")]
    assert curves[0] == curves[1]
    assert [entry["step"] for entry in read_curve(tmp_path / "killed")] == list(range(1, 9))
    assert events(tmp_path / "whole") == events(tmp_path / "killed")
    assert [step for step, _ in events(tmp_path / "killed")["loss"]] == list(range(1, 9))


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """Two processes, gloo over the loopback interface: what each of them computed."""
    folder, port = tmp_path_factory.mktemp("together"), str(free_port())
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    shared |= {"CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": "2"}
    both = [start("together", folder, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
    for process in both:
        finish(process)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)] + [{"folder": folder / "run"}]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_find_the_loss_and_gradients_of_one(found, rank, chunk):
    alone, here = one_step(Workers(torch.device("cpu")), 0), found[rank][f"step {chunk}"]
    for kind in ("losses", "gradients"):
        assert here[kind].keys() == alone[kind].keys()
        for name, value in alone[kind].items():
            torch.testing.assert_close(here[kind][name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_two_processes_train_as_one(found):
    from tiny_coca import model_and_pairs, weights

    model, pairs = model_and_pairs(dropout=0.4, rich=True)
    history = train_coca(model, pairs, CONFIG, augment=noisy).history
    first, second, run = found
    alone = weights(model)
    for name, value in first["trained"]["weights"].items():
        assert torch.equal(value, second["trained"]["weights"][name]), name
        torch.testing.assert_close(value, alone[name], rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert [one["trained"]["validations"].item() for one in found[:2]] == [2, 0]  # number 0 alone validates and writes
    curve = read_curve(run["folder"])
    assert [entry["loss"] for entry in curve] == pytest.approx([entry["loss"] for entry in history], rel=1e-4)
    assert (run["folder"] / "best" / "model.safetensors").is_file()
