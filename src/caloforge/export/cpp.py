"""Export of a one-step student as C++: a header without dependencies, and weights, for the software of experiments.

At batch 1 ONNX Runtime spends about a microsecond on each of a student's 160 to 200 operations. Written out as loops,
the same numbers take a small part of that. The folder that ``export_cpp`` writes holds

    one_step.hpp   the code, the same for all students
    weights.bin    weights and tables of this one
    card.json      the model's card
    example.cpp    a program that makes showers

It is compiled here and compared with PyTorch, with whatever C++17 compiler is found (``CXX``, c++, g++ or clang++).
"""

import ctypes
import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..fastsim import Card, FastSim
from ..geometry import Array
from ..io import new_file, require_absent
from ..models.one_step import OneStep
from . import TOLERANCE, Parity, compare_with

MAGIC = b"CALOFOR1"
TILE = 64  # as in the header
KINDS = {"fractions": 0, "logs": 1, "rest": 2, "ratios": 3}
ACTIVATIONS = {"relu": 0, "tanh": 1, "silu": 2}
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffast-math", "-Wno-psabi")
HEADER = Path(__file__).parent / "one_step.hpp"
EXAMPLE = """\
// Showers of particles of {energy:.0f} MeV along the axis.
// c++ {flags} example.cpp -o example && ./example
#include <cstdio>
#include "one_step.hpp"

int main() {{
  caloforge::OneStep model("weights.bin");
  const int n = 10, n_voxels = model.n_voxels();
  std::vector<float> energy(n, {energy:.1f}f), zero(n, 0.0f), pdg(n, {pdg}.0f), out(n * n_voxels);
  const uint64_t seed = 1, first = 0;  // of the noise
  model.generate(n, seed, first, energy.data(), zero.data(), zero.data(), zero.data(), zero.data(), pdg.data(),
                 out.data());
  for (int k = 0; k < n; ++k) {{
    float sum = 0;
    int filled = 0;
    for (int v = 0; v < n_voxels; ++v) sum += out[k * n_voxels + v], filled += out[k * n_voxels + v] > 0;
    std::printf("shower %d: %.1f MeV in %d of %d voxels\\n", k, sum, filled, n_voxels);
  }}
}}
"""
BINDING = """\
#include "one_step.hpp"
#include <memory>
extern "C" {
void* caloforge_load(const char* path) {
  try { return new caloforge::OneStep(path); } catch (const std::exception&) { return nullptr; }
}
void caloforge_free(void* model) { delete static_cast<caloforge::OneStep*>(model); }
void caloforge_generate(void* model, int n, const float* z, const float* e, const float* theta, const float* phi,
                        const float* x, const float* y, const float* pdg, float* out) {
  static_cast<caloforge::OneStep*>(model)->generate(n, z, e, theta, phi, x, y, pdg, out);
}
void caloforge_seeded(void* model, int n, uint64_t seed, uint64_t first, const float* e, const float* theta,
                      const float* phi, const float* x, const float* y, const float* pdg, float* out) {
  static_cast<caloforge::OneStep*>(model)->generate(n, seed, first, e, theta, phi, x, y, pdg, out);
}
void caloforge_noise(void* model, int n, uint64_t seed, uint64_t first, float* out) {
  static_cast<caloforge::OneStep*>(model)->draw_noise(n, seed, first, out);
}
}
"""


class Compiled:
    """A student compiled for this machine. Not for several threads at once; close it, or use it in a with statement."""

    def __init__(self, fast: FastSim) -> None:
        weights = pack(fast)
        self.n_voxels, self.n_noise, self._model = fast.geometry.n_voxels, fast.n_noise, None
        self._library = _library(compiler())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.bin"
            path.write_bytes(weights)
            self._model = self._library.caloforge_load(str(path).encode())
        if not self._model:
            raise ValueError("got weights that the compiled header refuses, expected those of its version; reinstall")

    def __call__(self, z: Array, particles: list[Array]) -> Array:
        """Voxel energies [MeV] (N, V) for noise (N, Z) and the arrays of CONDITIONS, and of pdg if needed."""
        z = np.ascontiguousarray(z, np.float32)
        return self._run(self._library.caloforge_generate, particles, z.ctypes.data)

    def seeded(self, particles: list[Array], seed: int, first: int = 0) -> Array:
        """The same with noise of its own: shower ``first`` + k of a seed is the same, whatever comes before it."""
        return self._run(self._library.caloforge_seeded, particles, seed, first)

    def noise(self, n: int, seed: int, first: int = 0) -> Array:
        """The noise that ``seeded`` takes, (n, Z)."""
        z = np.empty((n, self.n_noise), np.float32)
        self._library.caloforge_noise(self._model, n, seed, first, z.ctypes.data)
        return z

    def _run(self, function: Any, particles: list[Array], *given: int) -> Array:
        values = np.array(particles, np.float32)
        out = np.empty((values.shape[1], self.n_voxels), np.float32)
        first = values.ctypes.data
        places = [first + k * values.strides[0] for k in range(len(values))] + [None] * (6 - len(values))
        function(self._model, len(out), *given, *places, out.ctypes.data)
        return out

    def close(self) -> None:
        if self._model:
            self._library.caloforge_free(self._model)
            self._model = None

    def __enter__(self) -> "Compiled":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def export_cpp(fast: FastSim, folder: str | Path, *, force: bool = False, n_check: int = 256) -> Parity:
    """Write header, weights, card and example into ``folder``, compiled once and checked against PyTorch.

    Nothing is written when they differ, there is no compiler, or the model is no one-step student.
    """
    folder = require_absent(folder, force, folder=True)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"got output {folder}, a file, expected a folder for C++; choose another name")
    with Compiled(fast) as model:
        parity = compare_with(fast, model, n=n_check)
    if not parity.layer_energy <= TOLERANCE:
        raise ValueError(
            f"got compiled code whose layer energies differ from PyTorch by {parity.layer_energy:.1e}, expected "
            f"at most {TOLERANCE:.0e}; nothing was written, please report the model's card"
        )
    middle = float(np.sqrt(np.prod(fast.card.valid["energy"])))
    files = {
        "one_step.hpp": HEADER.read_bytes(),
        "weights.bin": pack(fast),
        "card.json": json.dumps(fast.card.to_dict(), indent=1).encode(),
        "example.cpp": EXAMPLE.format(energy=middle, pdg=fast.card.pdg[0], flags=" ".join(FLAGS)).encode(),
    }
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        with new_file(folder / name, force=True) as temporary:
            temporary.write_bytes(content)
    return parity


@cache
def _library(command: str) -> ctypes.CDLL:
    """The header compiled for this machine, once in a process; it is the same for all students."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        shutil.copy(HEADER, here)
        (here / "binding.cpp").write_text(BINDING)
        words = [command, *FLAGS, "-shared", "-fPIC", "binding.cpp", "-o", "binding.so"]
        done = subprocess.run(words, cwd=here, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise ValueError(f"got an error of {command} ({said}), expected a C++17 compiler; set CXX to another one")
        library = ctypes.CDLL(str(here / "binding.so"))
    library.caloforge_load.restype = ctypes.c_void_p
    library.caloforge_load.argtypes = [ctypes.c_char_p]
    library.caloforge_free.restype, library.caloforge_free.argtypes = None, [ctypes.c_void_p]
    counted = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64]
    for name, arguments in (
        ("generate", [*counted[:2], *[ctypes.c_void_p] * 8]), ("seeded", [*counted, *[ctypes.c_void_p] * 7]),
        ("noise", [*counted, ctypes.c_void_p]),
    ):  # fmt: skip
        function = getattr(library, f"caloforge_{name}")
        function.restype, function.argtypes = None, arguments
    return library


def compiler() -> str:
    """Name of the C++ compiler; FileNotFoundError where there is none."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise FileNotFoundError(
        "got no C++ compiler, expected c++, g++ or clang++ or one named by CXX; install one, or export ONNX"
    )


def not_compilable(card: Card) -> str:
    """What about a model keeps it from being written as C++; empty where nothing does."""
    if card.family != "one_step":
        return f"a model of family {card.family}"
    if card.config.get("layers_by") == "flow":
        return "a student with layers_by = 'flow'"
    return ""


class _Bytes:
    """What ``pack`` writes, piece after piece."""

    def __init__(self) -> None:
        self.parts = [MAGIC]

    def put(self, *values: int | float) -> None:
        """Numbers: float32 of a float, else int32."""
        self.parts += [np.asarray(v, np.float32 if isinstance(v, float) else np.int32).tobytes() for v in values]

    def array(self, values: Any, kind: Any = np.float32) -> None:
        """An array of any shape after its length."""
        flat: Array = np.ascontiguousarray(torch.as_tensor(values).detach().cpu().numpy(), kind).reshape(-1)
        self.put(len(flat))
        self.parts.append(flat.tobytes())

    def linear(self, weight: Array, bias: Array) -> None:
        """Weights (n_out, n_in) in tiles of outputs, float16 where that is exact, and bias, padded to whole tiles."""
        n_out, n_in = weight.shape
        more = -n_out % TILE
        rows = np.pad(weight.astype(np.float32), ((0, more), (0, 0)))
        tiles = rows.reshape(-1, TILE, n_in).transpose(0, 2, 1).copy()
        with np.errstate(over="ignore"):
            exact = np.array_equal(tiles, tiles.astype(np.float16))  # those of a shipped model
        self.put(n_in, n_out, int(exact))
        self.array(tiles, np.float16 if exact else np.float32)
        self.array(np.pad(bias.astype(np.float32), (0, more)))

    def network(self, net: nn.Module | None) -> None:
        """The linear layers of a network after their number."""
        steps = [] if net is None else [v for v in net.modules() if isinstance(v, nn.Linear)]
        self.put(len(steps))
        for step in steps:
            self.linear(step.weight.detach().cpu().numpy(), step.bias.detach().cpu().numpy())


def pack(fast: FastSim) -> bytes:
    """Weights and tables in the order in which the header reads them: int32 and float32, arrays after their length."""
    if reason := not_compilable(fast.card):
        raise ValueError(
            f"got {reason} for C++, expected a student of family one_step with layers_by = 'regression'; export ONNX"
        )
    model = fast.generator
    assert isinstance(model, OneStep)
    config, encoder = model.config, fast.encoder
    layers = np.cumsum([0, *model.members.sizes])
    radial = config.radial and model.n_moments > 0
    n_powers = len(model.moments.powers) if model.n_moments else 5
    full = model.root.dim() == 2
    largest = int(model.largest.argmax()) if hasattr(model, "largest") else 0
    half, middle = model.sizes.log_energies
    out = _Bytes()
    out.put(
        model.n_layers, fast.geometry.n_voxels, model.sizes.n_conditions, config.per_layer, model.n_moments, n_powers,
        int(config.brightest), int(config.centred and not radial), int(config.recount), KINDS[config.layers],
        model.rings.n, config.n_knots, config.n_nodes, config.n_read, int(full), largest, int(encoder.polar),
        encoder.n_classes, ACTIVATIONS[config.layer_activation],
    )  # fmt: skip
    out.put(float(model.threshold), float(torch.log(model.ceiling)), half, middle, float(encoder.depth))
    out.array(layers, np.int32)
    out.array(model.rings.ring, np.int32)
    out.array(encoder.active, np.int32)
    span = encoder.high - encoder.low
    out.array(encoder.low)
    out.array(torch.where(span > 1e-5 * encoder.high.abs(), span, 1.0))
    out.array(encoder.kinds)
    for table in (model.lowest, model.per_g, model.first, model.per_node, model.read, model.q.transpose(0, 1)):
        out.array(table)
    out.array(torch.zeros(0) if full else model.root)
    powers = _powers(model, n_powers)
    wide = np.zeros((len(powers), 16 if n_powers > 8 else 8), np.float32)
    wide[:, :n_powers] = powers
    out.array(wide)
    out.array(powers[:, 1 : 1 + model.n_moments].T.copy())
    if full:
        out.linear(model.root.T.cpu().numpy(), np.zeros(fast.geometry.n_voxels))
    for net in (model.layers, model.voxels, model.newton, model.newton_rest):
        out.network(net)
    return b"".join(out.parts)


def _powers(model: OneStep, n_powers: int) -> Array:
    """Powers of the voxels' places, (V, P)."""
    if not model.n_moments:
        return np.zeros((len(model.members.index), n_powers), np.float32)
    basis, n = model.moments.basis, model.n_layers
    if model.moments.alike:
        return basis.reshape(-1, n_powers).cpu().numpy()
    return basis.reshape(-1, n_powers, n).sum(2).cpu().numpy()  # zero outside of a voxel's own layer
