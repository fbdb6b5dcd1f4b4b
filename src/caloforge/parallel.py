"""Where training computes: the device, its precision, and the processes that share the work.

Under ``torchrun --nproc-per-node P`` every process holds the whole model and the data, takes its share of the pieces of
each batch, and the gradients are summed over the processes. It is done by hand, not by DistributedDataParallel: that
wrapper counts on one ``forward`` and one backward pass for all parameters, while the several objectives of a model
train different parameters at different steps, through methods of their own.
"""

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process is number ``rank`` of ``n`` with the same weights; it computes on ``device``."""

    rank: int = 0
    n: int = 1
    device: torch.device = CPU

    def share(self, parts: int) -> range:
        """The pieces of a batch that fall to this process, out of ``parts``, a multiple of n."""
        size = parts // self.n
        return range(self.rank * size, (self.rank + 1) * size)

    @torch.no_grad()
    def add(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its sum over the processes, with one message for each dtype."""
        if self.n == 1:
            return
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            some = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in some])
            dist.all_reduce(flat)
            for t, total in zip(some, torch.split(flat, [t.numel() for t in some]), strict=True):
                t.copy_(total.view_as(t))

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """The same for gradients; one that no process has stays None, so that the optimiser leaves it out."""
        if self.n == 1:
            return
        found = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.add([found, *gradients])
        for parameter, gradient, n in zip(parameters, gradients, found.tolist(), strict=True):
            parameter.grad = gradient if n else None

    @torch.no_grad()
    def broadcast(self, model: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first one."""
        if self.n == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            value = tensor.detach().contiguous()
            dist.broadcast(value, 0)
            tensor.copy_(value)


def n_processes() -> int:
    """Number of processes that train together: those of torchrun, or of a group that exists already; otherwise 1."""
    return _place("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process among them; number 0 writes the files."""
    return _place("RANK", 0)


def _place(name: str, alone: int) -> int:
    if not dist.is_available():
        return alone
    if dist.is_initialized():
        return dist.get_world_size() if name == "WORLD_SIZE" else dist.get_rank()
    return int(os.environ[name]) if dist.is_torchelastic_launched() else alone


def require_divisor(parts: int) -> None:
    """Raise ValueError unless the pieces of a batch can be dealt to the processes in equal numbers."""
    if parts % n_processes():
        raise ValueError(
            f"got {n_processes()} processes for train.parts = {parts}, expected a number that divides it; set "
            f"train.parts = {n_processes()} or start fewer"
        )


def choose_device(name: str) -> torch.device:
    """The device called "cpu" or "cuda", or for "auto" a GPU where there is one; of several that of LOCAL_RANK."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and n == 0):
        return CPU
    if n == 0:
        raise ValueError(
            "got train.device = 'cuda' where PyTorch finds no GPU, expected one; set it to 'auto' or 'cpu'"
        )
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= n:
        raise ValueError(f"got process {local} of this machine with {n} GPUs, expected one for each; start fewer")
    return torch.device("cuda", local)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 itself; a CPU without AMX or AVX512-BF16 is many times slower in it."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private: absent counts as no
    return device.type != "cpu" or any(getattr(torch.cpu, name, bool)() for name in probes)


def join(device: torch.device) -> Processes:
    """This process among those that train together, which wait for each other here the first time.

    They stay together until they end: they could not find each other again by the same address.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if n_processes() > 1 and not dist.is_initialized():
        dist.init_process_group()  # gloo between CPUs, nccl between GPUs
        atexit.register(dist.destroy_process_group)
    return Processes(rank(), n_processes(), device)
