"""Several processes train the model that one trains; this file is also the program that they run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from caloforge import parallel
from caloforge.fastsim import FastSim
from caloforge.models import MODELS, Generator, Objective, Sizes
from caloforge.models.base import randn_like
from caloforge.models.flow_matching import FlowMatchingConfig
from caloforge.parallel import Processes, choose_device, has_fast_bf16, n_processes, rank, require_divisor
from caloforge.testing import small_showers
from caloforge.train import TrainConfig, _gradients, _pieces, _prepare, fit

SHOWERS = small_showers()
CONFIG = TrainConfig(
    steps=12, batch=32, parts=2, lr=3e-3, warmup=2, validation=0.2, bf16=False, ema=0.9, log_every=1,
    checkpoint_every=4, seed=3, device="cpu",
)  # fmt: skip


@dataclass(frozen=True)
class NormalisedConfig:
    """fault: step after which the loss of a batch's second half is NaN."""

    fault: int = -1


class Normalised(Generator):
    """A network with batch normalisation and two objectives, one of which not every parameter takes part in."""

    def __init__(self, config: NormalisedConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.n_noise, self.step = config, sizes.n_globals + sizes.n_voxels, 0
        self.net = nn.Sequential(nn.Linear(self.n_noise, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, self.n_noise))
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("constant", torch.tensor([0.1, 0.7]))

    def objectives(self) -> Iterator[Objective]:
        yield Objective("first", [*self.net.parameters(), self.idle], self._loss)
        yield Objective("second", list(self.net[3].parameters()), self._loss, every=2)

    def _loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        self.step += self.training
        loss = (self.net(x + 0.1 * randn_like(x, generator)) - x).square().mean()
        return loss * float("nan") if self.step > self.config.fault >= 0 and rank() == 1 else loss

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.net(z)
        return out


MODELS_HERE: dict[str, Any] = {
    "flow": FlowMatchingConfig(width=16, depth=1, dropout=0.1, n_steps=1, layer_hidden=8, layer_transforms=1),
    "normalised": NormalisedConfig(),
}


def create(name: str, config: Any = None) -> FastSim:
    config = config or MODELS_HERE[name]
    return FastSim.create(SHOWERS.geometry, config, valid=SHOWERS.incident, seed=rank())  # weights of the first count


def program(out: Path) -> None:
    """What each process does: every model into out/NAME-RANK, the rest of a run, and what a NaN of one of them says."""
    for name in MODELS_HERE:
        fast = create(name)
        fit(fast, SHOWERS, CONFIG, folder=out / f"{name}-{rank()}")
        torch.save(fast.state_dict(), out / f"{name}-{rank()}.pt")
    fast = create("flow")
    fit(fast, SHOWERS, CONFIG, folder=out / "resumed", resume=True)  # that one process began
    torch.save(fast.state_dict(), out / f"resumed-{rank()}.pt")
    try:
        fit(create("normalised", NormalisedConfig(6)), SHOWERS, CONFIG, folder=out / f"nan-{rank()}")
    except FloatingPointError as error:
        (out / f"nan-{rank()}.txt").write_text(str(error))


class Interruption(Exception):
    pass


def interrupt(done: int, total: int, note: str) -> None:
    if done == 7:
        raise Interruption


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "normalised", (NormalisedConfig, Normalised))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have worked."""
    out = tmp_path_factory.mktemp("two")
    for name in (*MODELS_HERE, "nan"):
        for k in (0, 1):
            (out / f"{name}-{k}").mkdir()
    (out / "resumed").mkdir()
    with pytest.raises(Interruption):
        fit(create("flow"), SHOWERS, CONFIG, folder=out / "resumed", progress=interrupt)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen([*torchrun, __file__, str(out)], stderr=subprocess.PIPE, text=True)
    try:
        _, err = process.communicate(timeout=300)
    finally:
        process.terminate()  # and with it the two, should they wait for each other
    assert process.returncode == 0, err
    return out


@pytest.mark.usefixtures("normalised")
@pytest.mark.parametrize("name", MODELS_HERE)
def test_two_processes_train_what_one_trains(name: str, by_two: Path, tmp_path: Path) -> None:
    fast = create(name)
    fit(fast, SHOWERS, CONFIG, folder=tmp_path)
    alone, together = rows(tmp_path), rows(by_two / f"{name}-0")
    assert len(alone) == CONFIG.steps
    for a, b in zip(alone, together, strict=True):
        for key in a.keys() - {"showers_per_s", "precision"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-5), (a["step"], key)
    weights = fast.state_dict()
    first, second = (torch.load(by_two / f"{name}-{k}.pt", weights_only=True) for k in (0, 1))
    for key, value in weights.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-4, msg=key)


def test_two_processes_resume_what_one_began(by_two: Path) -> None:
    whole = torch.load(by_two / "flow-0.pt", weights_only=True)
    for k in (0, 1):
        resumed = torch.load(by_two / f"resumed-{k}.pt", weights_only=True)
        for key, value in whole.items():
            torch.testing.assert_close(resumed[key], value, rtol=1e-4, atol=1e-4, msg=key)
    assert [row["step"] for row in rows(by_two / "resumed")] == list(range(1, 13))


def test_only_the_first_process_writes(by_two: Path) -> None:
    for name in MODELS_HERE:
        assert {p.name for p in (by_two / f"{name}-0").iterdir()} == {"log.jsonl", "last.pt"}
        assert list((by_two / f"{name}-1").iterdir()) == []


def test_a_nan_of_one_process_stops_all(by_two: Path) -> None:
    for k in (0, 1):
        text = (by_two / f"nan-{k}.txt").read_text()
        assert text.startswith("got a loss of nan for objective 'first' at step 4, expected a finite number; ")
    assert torch.load(by_two / "nan-0" / "last.pt", weights_only=True)["step"] == 4


@pytest.mark.usefixtures("normalised")
def test_buffers_change_by_the_mean_of_the_pieces() -> None:
    """Running means, with momentum 0.1 from 0: a tenth of the mean of the pieces' means."""
    fast = create("normalised")
    data, _ = _prepare(fast, SHOWERS, CONFIG, False)
    net, config, means = fast.generator.train().net, replace(CONFIG, parts=4), []
    net[0].register_forward_hook(lambda module, given, out: means.append(out.detach().mean(0)))
    pieces = _pieces(0, config, fast, data, Processes())
    _gradients(next(fast.generator.objectives()), pieces, fast.generator, config, Processes())
    assert len(means) == 4
    torch.testing.assert_close(net[1].running_mean, 0.1 * torch.stack(means).mean(0))
    assert int(net[1].num_batches_tracked) == 1
    assert torch.equal(fast.generator.constant, torch.tensor([0.1, 0.7]))


def torchrun(monkeypatch: pytest.MonkeyPatch, n: int, k: int) -> None:
    """The environment of process k of n."""
    for name, value in (("TORCHELASTIC_RUN_ID", "run"), ("WORLD_SIZE", n), ("RANK", k), ("LOCAL_RANK", k)):
        monkeypatch.setenv(name, str(value))


def test_the_number_of_processes_divides_the_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (n_processes(), rank()) == (1, 0)
    torchrun(monkeypatch, 2, 1)
    assert (n_processes(), rank()) == (2, 1)
    require_divisor(4)
    with pytest.raises(
        ValueError,
        match=r"got 2 processes for train\.parts = 1, expected a number that divides it; set train",
    ):
        fit(create("flow"), SHOWERS, replace(CONFIG, parts=1), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_piece_falls_to_one_process() -> None:
    for n, parts in ((1, 1), (1, 4), (2, 4), (4, 4), (3, 6)):
        dealt = [k for rank in range(n) for k in Processes(rank, n).share(parts)]
        assert dealt == list(range(parts))


def test_alone_nothing_is_sent() -> None:
    values = [torch.ones(3), torch.ones(2, dtype=torch.float64)]
    Processes().add(values)
    Processes().broadcast(nn.Linear(2, 2))
    assert all(bool((v == 1).all()) for v in values)


def test_a_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")
    torchrun(monkeypatch, 4, 1)
    assert choose_device("auto") == torch.device("cuda", 1)
    torchrun(monkeypatch, 4, 2)
    with pytest.raises(ValueError, match=r"got process 2 of this machine with 2 GPUs, expected one for each; start"):
        choose_device("auto")


def test_fast_bf16_is_what_the_processor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not has_fast_bf16(parallel.CPU)
    assert has_fast_bf16(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_fast_bf16(parallel.CPU)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)  # another version of PyTorch
    assert not has_fast_bf16(parallel.CPU)


if __name__ == "__main__":
    torch.set_num_threads(1)
    MODELS["normalised"] = (NormalisedConfig, Normalised)
    program(Path(sys.argv[1]))
