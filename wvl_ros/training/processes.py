"""The processes of one training run: one, or as many as `torchrun` has started.

All of them draw the same random numbers for the whole batch, and each computes its share of it; gradients are averaged
and only the first process writes. So two processes give the same result as one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wvl_ros.errors import ConfigError

_PATIENCE = timedelta(hours=6)  # the others wait that long while the first one validates


def started() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def let_one_speak() -> None:
    """Of several processes only the first prints its result."""
    if int(os.environ.get("RANK", "0")):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Processes:
        """Meets the others that torchrun has started, if any.

        Raises:
            ConfigError: they cannot be reached.
        """
        if started() == 1:
            return cls()
        if not dist.is_initialized():
            try:
                dist.init_process_group("gloo", timeout=_PATIENCE)
            except (ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"The processes of this run do not find each other ({error}); start them with "
                    "`torchrun --nproc_per_node 2 -m wvl_ros.cli train ...`."
                ) from error
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """The rows of a batch that this process computes.

        Raises:
            ConfigError: the batch cannot be shared evenly, so that averages would differ from those of one process.
        """
        if batch % self.count:
            raise ConfigError(
                f"A batch of {batch} cannot be shared evenly by {self.count} processes; make `batch` a multiple of it."
            )
        size = batch // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients of the whole batch, from those of equal shares."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor]

    def gather(self, rows: Tensor) -> Tensor:
        """The whole batch from the rows of each process."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """What each process has, in their order; anything that can be pickled, among processes of one run."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def copy_from_main(self, module: nn.Module) -> None:
        """Parameters and buffers as the first process has them."""
        if self.count == 1:
            return
        for tensor in module.state_dict().values():
            same = tensor.detach().contiguous()
            dist.broadcast(same, 0)
            tensor.copy_(same)

    def copy_object(self, value: Any) -> Any:
        """What the first process has (made of numbers, texts, lists and tables)."""
        if self.count == 1:
            return value
        text = json.dumps(value).encode() if self.main else b""
        size = torch.tensor([len(text)])
        dist.broadcast(size, 0)
        data = torch.tensor(list(text), dtype=torch.uint8) if self.main else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """The end of the run."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()
