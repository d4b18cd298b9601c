"""The processes that train together: where each computes, which rows of a batch are its own, and what they exchange.

A thin layer on Accelerate's `PartialState`: one CPU, one GPU, or as many of either as torchrun started. With
one process nothing is exchanged and every function here gives back what it was given. Taught in: 07 §8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ecgchat_lib.errors import EcgChatError, ParameterError


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Attributes:
        device: where this process computes.
        index: its number, from 0; number 0 writes the files.
        count: how many there are.
    """

    device: torch.device
    index: int = 0
    count: int = 1

    def rows(self, size: int) -> range:
        """Return this process's rows of a batch of `size`: an equal, connected part.

        Raises:
            ParameterError: the processes can't have equal parts.
        """
        if size % self.count:
            raise ParameterError(
                f"batch={size} can't be split evenly among {self.count} processes. Choose a multiple of {self.count}."
            )
        each = size // self.count
        return range(self.index * each, (self.index + 1) * each)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes in the order of their numbers, without gradient."""
        if self.count == 1:
            return tensor.detach()
        from accelerate.utils import gather

        return gather(tensor.detach().contiguous())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, "sum")

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def check_same(self, step: int, model: torch.nn.Module) -> None:
        """Check that all processes begin at the same step with the same weights.

        Raises:
            EcgChatError: they don't, so what they compute together would mean nothing.
        """
        weights = torch.stack([p.detach().double().sum() for p in model.parameters()]).sum()
        mark = torch.tensor([[float(step), float(weights)]], dtype=torch.float64, device=self.device)
        if bool((self.gather(mark) != mark).any()):
            raise EcgChatError(
                f"process {self.index} of {self.count} begins at step {step} with other weights than the others. Build "
                "the model from the same seed in each, and keep the run's folder where all of them can read it."
            )


def join_workers() -> Workers:
    """Return this process's place: alone, or among those that torchrun or `accelerate launch` started."""
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Workers(state.device, state.process_index, state.num_processes)


def leave_workers() -> None:
    """End the connection to the other processes, if there are any; at the end of a program."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
