"""What a training of the chat model keeps so that it can be killed: one file with all that the next step depends on.

Only what is trained is in it, no weight of the language model. Tensors are safetensors, the rest is JSON, nothing is
pickled. The best weights by validation lie beside it. Taught in: 12 §4.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.errors import EcgChatError, ParameterError

if TYPE_CHECKING:
    from ecgchat_lib.chat.train import TrainConfig

STATE, BEST = "state.safetensors", "best.safetensors"


def trained_parameters(chat: EcgChat) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in chat.named_parameters() if p.requires_grad}


@dataclass
class TrainState:
    """All that a resume needs: trained weights, optimizer, randomness, float16's scaler, the step, the history.

    Attributes:
        chat: the model.
        optimizer: torch's or bitsandbytes', not accelerate's wrapper.
        accelerator: accelerate's helper, for the scaler and the processes.
        data: `fingerprint` of the training set's sizes.
        content: `content_hash` of the training set.
        step: the next step.
        history: one entry per step done.
    """

    chat: EcgChat
    optimizer: torch.optim.Optimizer
    accelerator: Any
    data: str
    content: str
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, folder: Path, config: TrainConfig) -> None:
        """Write the state to one file, in one step (a kill leaves the old one). All processes call it, one writes.

        Raises:
            ParameterError: FSDP or DeepSpeed cut the optimizer's state into pieces that this file can't hold.
        """
        self._check_whole()
        randomness = _randomness(self.accelerator)  # of every process
        if not self.accelerator.is_main_process:
            return
        tensors = {f"weight.{name}": p.detach() for name, p in trained_parameters(self.chat).items()}
        tensors |= {f"random.{name}": value for name, value in randomness.items()}
        numbers: dict[str, float] = {}
        names = {id(p): name for name, p in self.chat.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                place = f"optimizer.{key}.{names[id(parameter)]}"
                if isinstance(value, torch.Tensor):
                    tensors[place] = value
                else:
                    numbers[place] = value
        about: dict[str, Any] = {"step": self.step, "history": self.history, "numbers": numbers}
        about |= self._belongs_to(config)
        if self.accelerator.scaler is not None:
            about["scaler"] = self.accelerator.scaler.state_dict()
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / STATE, tensors, {"state": json.dumps(about)})

    def load(self, folder: Path, config: TrainConfig) -> None:
        """Go on from the folder's state, if it holds one.

        Raises:
            EcgChatError: the file is damaged, or belongs to another run (settings, data, model, processes).
        """
        path = folder / STATE
        self.accelerator.wait_for_everyone()
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            return
        self._check_whole()
        tensors, about = _read(path)
        now = self._belongs_to(config)
        # a state of before `content` was noted has sizes alone
        changed = [name for name in ("data", "content", "processes") if about.get(name, now[name]) != now[name]]
        changed += [name for name, value in about["config"].items() if now["config"].get(name) != value]
        if changed:
            raise EcgChatError(
                f"{path}: this run was started with other settings ({', '.join(sorted(changed))}). "
                "Use the same settings to resume it, or another folder to start a new run"
            )
        self._put_back(path, tensors, about)
        self.step, self.history = about["step"], about["history"]
        if about.get("scaler") and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(about["scaler"])

    def _belongs_to(self, config: TrainConfig) -> dict[str, Any]:
        """Return what must be the same when the run goes on."""
        processes = self.accelerator.num_processes
        return {"config": _plain(config), "data": self.data, "content": self.content, "processes": processes}

    def _put_back(self, path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        parameters = trained_parameters(self.chat)
        weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
        put_weights(path, weights, parameters)
        optimizer = {name: t for name, t in tensors.items() if name.startswith("optimizer.")} | about["numbers"]
        for place, value in optimizer.items():
            _, key, name = place.split(".", 2)  # "optimizer.exp_avg.projector.up.weight"
            if isinstance(value, torch.Tensor) and key != "step":
                value = value.to(parameters[name].device)
            self.optimizer.state[parameters[name]][key] = value
        rank = self.accelerator.process_index
        torch.set_rng_state(tensors["random.cpu"][rank])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"][rank])

    def _check_whole(self) -> None:
        kind = str(getattr(self.accelerator.distributed_type, "value", "NO"))
        if kind in ("FSDP", "DEEPSPEED"):
            raise ParameterError(
                f"{kind} keeps the optimizer's state in pieces, so this run can't be resumed. Train without a folder "
                "for the state, or with DDP"
            )


class BestWeights:
    """The trained weights with the lowest validation loss, in memory, and in `best.safetensors` if there is a folder.

    Args:
        chat: the model in training.
        folder: the run's folder; an earlier best is taken from there.
    """

    def __init__(self, chat: EcgChat, folder: Path | None) -> None:
        self.chat = chat
        self.path = folder / BEST if folder is not None else None
        self.value, self.step = math.inf, 0
        self.weights: dict[str, torch.Tensor] = {}
        if self.path is not None and (folder / STATE).is_file() and self.path.is_file():  # type: ignore[operator]
            self.weights, about = _read(self.path)
            self.value, self.step = about["value"], about["step"]

    def offer(self, value: float, step: int, *, write: bool) -> None:
        """Keep the weights of now if their loss is the lowest so far."""
        if not value < self.value:
            return
        self.value, self.step = value, step
        self.weights = {name: p.detach().cpu().clone() for name, p in trained_parameters(self.chat).items()}
        if self.path is not None and write:
            write_tensors(self.path, self.weights, {"state": json.dumps({"value": value, "step": step})})

    def restore(self) -> None:
        """Put the best weights into the model; without any validation it keeps its last ones."""
        if self.weights:
            put_weights(self.path or Path(BEST), self.weights, trained_parameters(self.chat))


def put_weights(path: Path, weights: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter]) -> None:
    """Copy weights into parameters, name by name.

    Raises:
        EcgChatError: names or shapes differ.
    """
    odd = sorted(set(weights) ^ set(parameters))
    odd += [name for name in weights if name in parameters and weights[name].shape != parameters[name].shape]
    if odd:
        raise EcgChatError(
            f"{path}: {len(odd)} tensors don't fit this model, the first is {odd[0]}. "
            "Build the same model with the same adapters to resume the run, or use another folder"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Write a safetensors file in one step."""
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.part")
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, temporary, about)
    temporary.chmod(0o644)  # safetensors writes for the owner alone, and git and others must read it
    os.replace(temporary, path)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise EcgChatError(f"{path}: not a readable training state ({error}). Delete it to start over") from error


def _randomness(accelerator: Any) -> dict[str, torch.Tensor]:
    """Return torch's random states of all processes, (processes, bytes) each."""
    own = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state()
    return {name: accelerator.gather(state[None].to(accelerator.device)).cpu() for name, state in own.items()}


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return the config as JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
