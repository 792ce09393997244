"""Batches of samples with equal plans, in an order that every process computes itself.

A step takes one batch from each process. The order depends only on seed and epoch, and each process takes its share.
So all processes have the same steps, and a resumed run keeps the order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from videoxl.errors import DataError
from videoxl.train.data.dataset import SampleKey
from videoxl.train.data.plans import SamplePlan

_MEGABATCH = 50  # batches per process sorted by length together; more would make the order less random


@dataclass(frozen=True)
class Grouping:
    """How batches are grouped into steps.

    Attributes:
        by_stride: `strict` (all batches of a step have the same number of windows; batches that fill no step are left
            out of the epoch), `relaxed` (nearly the same, nothing left out) or `none`.
        sort: with `by_stride`: `ascend`, `descend` or None (random order of steps).
        by_length: batches of a step have similar lengths.
        apart: with `by_length`: no step mixes samples with and without visual input.
    """

    by_stride: str = "none"
    sort: str | None = None
    by_length: bool = False
    apart: bool = False


class PlanBatchSampler(Sampler[list[SampleKey]]):
    """The batches of one process, epoch by epoch.

    Attributes:
        num_left_out: samples that the first epoch leaves out (only with `strict`).
    """

    def __init__(
        self,
        plans: Sequence[SamplePlan],
        window: int,
        batch_size: int,
        grouping: Grouping = Grouping(),
        world_size: int = 1,
        rank: int = 0,
        seed: int = 42,
        shuffle: bool = True,
    ):
        self.plans = plans
        self.windows = [plan.num_windows(window) for plan in plans]
        self.batch_size = batch_size
        self.grouping = grouping
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        steps = self._steps(0)
        self._num_steps = len(steps)
        used = {index for step in steps for batch in step for index in batch}
        self.num_left_out = len(plans) - len(used)
        if not steps:
            raise DataError(
                f"--group_by_stride strict leaves nothing: no number of windows has {world_size} batches, one for "
                "each process; use relaxed"
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in self._steps(self.epoch):
            yield [(self.epoch, index) for index in step[self.rank]]

    def _steps(self, epoch: int) -> list[list[list[int]]]:
        """Steps, each with one batch per process."""
        rng = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        batches = self._batches(rng)
        if self.grouping.by_stride == "strict":
            return self._strict(batches, rng)
        if self.grouping.by_stride == "relaxed":
            batches.sort(key=self._windows_of)  # stable: random among equals
            return self._order(self._fill(batches), rng)
        if self.grouping.by_length:
            parts = [batches]
            if self.grouping.apart:
                visual = [bool(self.plans[batch[0]].spans) for batch in batches]
                parts = [[b for b, is_visual in zip(batches, visual) if is_visual is kind] for kind in (True, False)]
            steps = [step for part in parts if part for step in self._by_length(part)]
            return self._shuffled(steps, rng)
        return self._fill(batches)

    def _batches(self, rng: np.random.Generator | None) -> list[list[int]]:
        """Batches of equal plans in random order; the last batch of a plan may be smaller."""
        order = range(len(self.plans)) if rng is None else rng.permutation(len(self.plans)).tolist()
        open_batches: dict[tuple, list[int]] = {}
        batches = []
        for index in order:
            batch = open_batches.setdefault(self.plans[index].key, [])
            batch.append(index)
            if len(batch) == self.batch_size:
                batches.append(open_batches.pop(self.plans[index].key))
        return self._shuffled([*batches, *open_batches.values()], rng)

    def _strict(self, batches: list[list[int]], rng: np.random.Generator | None) -> list[list[list[int]]]:
        by_windows: dict[int, list[list[int]]] = {}
        for batch in batches:
            by_windows.setdefault(self._windows_of(batch), []).append(batch)
        steps = []
        for number in sorted(by_windows):
            group = by_windows[number]
            whole = len(group) - len(group) % self.world_size
            steps += [group[start : start + self.world_size] for start in range(0, whole, self.world_size)]
        return self._order(steps, rng)

    def _order(self, steps: list[list[list[int]]], rng: np.random.Generator | None) -> list[list[list[int]]]:
        """Order steps, given by ascending number of windows, as `sort` says."""
        if self.grouping.sort is None:
            return self._shuffled(steps, rng)
        return steps if self.grouping.sort == "ascend" else steps[::-1]

    def _by_length(self, batches: list[list[int]]) -> list[list[list[int]]]:
        span = _MEGABATCH * self.world_size
        steps = []
        for start in range(0, len(batches), span):
            part = sorted(batches[start : start + span], key=lambda batch: -self.plans[batch[0]].length)
            steps += self._fill(part)
        return steps

    def _fill(self, batches: list[list[int]]) -> list[list[list[int]]]:
        """Split into steps; the last one is filled with the first batches, so that every process has a batch."""
        lacking = -len(batches) % self.world_size
        whole = [*batches, *(batches * math.ceil(lacking / len(batches)))[:lacking]] if lacking else batches
        return [whole[start : start + self.world_size] for start in range(0, len(whole), self.world_size)]

    def _windows_of(self, batch: list[int]) -> int:
        return self.windows[batch[0]]

    @staticmethod
    def _shuffled(items: list, rng: np.random.Generator | None) -> list:
        return items if rng is None else [items[place] for place in rng.permutation(len(items))]
