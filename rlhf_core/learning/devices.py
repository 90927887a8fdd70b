"""Several processes that train one model together, and the precision in which they compute.

Every process holds the whole model, plans the same minibatches and takes its share of each; gradients and measurements
are then summed, so that the sum is what one process alone would have seen. `accelerate` starts the processes
(`accelerate launch --multi_gpu`, which takes CPUs where there is no GPU) and carries the numbers. Without it there is
one process, and nothing here costs anything.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

from rlhf_core.errors import SettingsError

Item = TypeVar("Item")
Compute = Literal["float32", "bfloat16"]
"""bfloat16 computes under autocast; the weights that learn stay float32."""


class Devices:
    """This process among `count` of them. Every method but `share` must be called by all, in the same order."""

    def __init__(self, compute: Compute = "float32", device: str = "auto") -> None:
        """`device`: auto takes CUDA where there is one. Raises SettingsError for a precision that it lacks."""
        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        if compute == "bfloat16" and not on_cpu and not torch.cuda.is_bf16_supported():
            raise SettingsError("this GPU does not compute in bfloat16: choose float32")
        self.compute: Compute = compute
        if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
            raise SettingsError(
                "`accelerate launch --cpu` starts a single process whatever --num_processes says: "
                "use `accelerate launch --multi_gpu --num_processes N`, which takes CPUs where there is no GPU"
            )
        # Not Accelerator: that one fixes a precision for the whole life of the process.
        self._state = PartialState(cpu=on_cpu)
        if self.count > 1:
            # Left to the end of the interpreter, a thread of gloo's may outlive what it belongs to and abort a process
            # that has done all its work.
            atexit.register(self._state.destroy_process_group)

    @property
    def count(self) -> int:
        return int(self._state.num_processes)

    @property
    def rank(self) -> int:
        return int(self._state.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return torch.device(self._state.device)

    def autocast(self) -> AbstractContextManager[None]:
        """What a forward pass runs in. Losses and logprobs are taken in float32 all the same."""
        if self.compute == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of `items`: every `count`-th, so that parts of sorted items are alike."""
        return list(items[self.rank :: self.count])

    def gather(self, part: Sequence[Item], total: int) -> list[Item]:
        """All `total` items in their order, from the parts that `share` gave. Items are pickled between processes."""
        if self.count == 1:
            return list(part)
        parts: list[list[Item]] = gather_object([list(part)])
        return [parts[at % self.count][at // self.count] for at in range(total)]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; a parameter without one counts as zero where others have one."""
        if self.count == 1:
            return
        trained = [each for each in parameters if each.requires_grad]
        if not trained:
            return
        flat = torch.cat([_gradient(each).flatten().float() for each in trained])
        total: Tensor = reduce(flat, reduction="sum")
        for each, part in zip(trained, total.split([each.numel() for each in trained]), strict=True):
            each.grad = part.view_as(each).to(each.dtype)

    def sum_numbers(self, numbers: Mapping[str, float], *, largest: Iterable[str] = ()) -> dict[str, float]:
        """`numbers` summed over processes, those named in `largest` maximised instead. All have the same names."""
        if self.count == 1:
            return dict(numbers)
        most = set(largest)
        everyone: list[dict[str, float]] = gather_object([dict(numbers)])
        return {
            name: max(each[name] for each in everyone) if name in most else sum(each[name] for each in everyone)
            for name in numbers
        }

    def wait(self) -> None:
        """Until every process is here."""
        self._state.wait_for_everyone()


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
