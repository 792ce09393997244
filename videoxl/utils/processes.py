"""Several processes of one evaluation, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from videoxl.errors import ArgumentError

Item = TypeVar("Item")
_LONGEST = timedelta(days=7)  # a process may wait for the slowest one


class Processes:
    """This process and how many there are. Without a launcher there is one.

    Attributes:
        rank: index of this process. world_size: number of processes.
    """

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self._local = int(os.environ.get("LOCAL_RANK", 0))
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_LONGEST)  # only barriers and small sums go through it

    def device(self, asked: str) -> str:
        """The device of this process: with several, each takes the GPU of its local rank unless `asked` is the CPU."""
        if self.world_size == 1 or asked == "cpu":
            return asked
        if not torch.cuda.is_available():
            return "cpu"
        if self._local >= torch.cuda.device_count():
            raise ArgumentError(
                f"process {self._local} has no GPU: {torch.cuda.device_count()} for {self.world_size} processes"
            )
        torch.cuda.set_device(self._local)
        return f"cuda:{self._local}"

    def share(self, items: Sequence[Item], loads: Sequence[float] | None = None) -> list[Item]:
        """This process's items, in order; with `loads`, split so that all processes have about the same load."""
        loads = [1.0] * len(items) if loads is None else loads
        sums, owners = [0.0] * self.world_size, {}
        for place in sorted(range(len(items)), key=lambda place: -loads[place]):
            owners[place] = sums.index(min(sums))
            sums[owners[place]] += loads[place]
        return [item for place, item in enumerate(items) if owners[place] == self.rank]

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.world_size > 1:
            dist.barrier()

    def total(self, number: int) -> int:
        """The sum of `number` over all processes, returned in each of them."""
        if self.world_size == 1:
            return number
        count = torch.tensor(number)
        dist.all_reduce(count)
        return int(count)
