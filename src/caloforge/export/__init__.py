"""Export of a FastSim as one ONNX graph: noise and incident particles in, MeV out, compared by number with PyTorch.

Inputs  noise (N, Z) ~ N(0, 1); energy [MeV], theta, phi [rad], x, y [mm], each (N,); pdg (N,), the PDG id as a number,
        where a model was made for several kinds of particles
Output  energy_mev (N, V) [MeV], voxels in the order of the geometry. All float32; N is dynamic.
The model's card travels in the graph's metadata.
"""

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._callable import callable_module
from ..fastsim import FastSim
from ..geometry import Array
from ..io import require_absent
from ..preprocess import CONDITIONS

OUTPUT = "energy_mev"
OPSET, IR_VERSION = 18, 8  # runs on ONNX Runtime >= 1.15
LONG = 4000  # nodes
TOLERANCE = 1e-4  # largest relative difference of a layer energy


@dataclass(frozen=True)
class Parity:
    """Agreement of the graph with PyTorch over ``n`` showers.

    layer_energy: largest relative difference of a layer's energy; voxel: largest difference of a voxel relative to its
    shower's energy; flips: fraction of voxels filled in one of the two only (they sit on the threshold).
    """

    n: int
    layer_energy: float
    voxel: float
    flips: float


def export(fast: FastSim, path: str | Path, *, force: bool = False, n_check: int = 256) -> Parity:
    """Write ``fast`` as ONNX and check it against PyTorch; nothing is written when they differ."""
    path = require_absent(path, force)
    model = _graph(fast)
    card = json.dumps(fast.card.to_dict())
    for key, value in (("caloforge_card", card), ("geometry_digest", fast.geometry.digest())):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    content = model.SerializeToString()
    parity = compare(fast, content, n=n_check)
    if not parity.layer_energy <= TOLERANCE:
        raise ValueError(
            f"got an ONNX graph whose layer energies differ from PyTorch by {parity.layer_energy:.1e}, expected "
            f"at most {TOLERANCE:.0e}; nothing was written, please report the model's card"
        )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
    return parity


def _graph(fast: FastSim) -> Any:
    """ONNX model proto with a dynamic batch."""
    _require_onnx()
    n = torch.export.Dim("N")
    example = (torch.zeros(2, fast.n_noise), *(torch.full((2,), v) for v in _typical(fast)))
    names = ("z", *fast.inputs)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is absent, which nobody asked for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                fast.eval(), example, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["noise", *fast.inputs], output_names=[OUTPUT],
                dynamic_shapes={name: {0: n} for name in names}, external_data=False, optimize=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    if program is None:
        raise ValueError("got no graph from the ONNX exporter, expected one; please report the model's card")
    if len(program.model.graph) < LONG:
        program.optimize()
        proto = program.model_proto
    else:
        proto = _folded(program.model)
    proto.ir_version = IR_VERSION
    for tensor in (*proto.graph.input, *proto.graph.output):  # inputs the model does not use come out with a fixed size
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"
    return proto


def _folded(model: Any) -> Any:
    """The proto of a long graph without what is constant, unused, there twice or undone by the next operation.

    The exporter's own optimiser also looks for pairs of operations, in a time that grows with the square of the graph's
    length: most of an hour for an autoregressive flow. ONNX Runtime does the rest as it loads a graph.
    """
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules

    common.InlinePass()(model)
    fold_constants(model)
    rewrite(model, [
        rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.cast_cast_rule,
        rules.reshape_reshape_rule, rules.transpose_transpose_rule, rules.unsqueeze_unsqueeze_rule,
        rules.remove_optional_bias_from_conv_rule, rules.remove_optional_bias_from_conv_transpose_rule,
    ])  # fmt: skip
    for step in (
        common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(), common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(), common.CommonSubexpressionEliminationPass(), common.OutputFixPass(),
        common.NameFixPass(),
    ):  # fmt: skip
        step(model)
    return onnx_ir.serde.serialize_model(model)


def compare(fast: FastSim, onnx_model: bytes | str, *, n: int = 256, seed: int = 1) -> Parity:
    """Run the graph and PyTorch on the same noise and particles, spread over the valid range."""
    graph = session(onnx_model)
    return compare_with(fast, lambda z, particles: run(graph, z, particles), n=n, seed=seed)


def compare_with(
    fast: FastSim, engine: Callable[[Array, list[Array]], Array], *, n: int = 256, seed: int = 1
) -> Parity:
    """The same for any function (noise, particles) -> voxel energies [MeV]."""
    rng = np.random.default_rng(seed)
    z = fast.noise(n, seed)
    valid = [fast.card.valid[name] for name in CONDITIONS]
    particles = [torch.from_numpy(rng.uniform(low, high, n).astype(np.float32)) for low, high in valid]
    if "pdg" in fast.inputs:
        particles.append(torch.from_numpy(rng.choice(fast.card.pdg, n).astype(np.float32)))
    with torch.inference_mode():
        ours = fast(z, *particles).numpy().astype(np.float64)
    theirs = engine(z.numpy(), [v.numpy() for v in particles]).astype(np.float64)
    starts = fast.geometry.offsets[:-1]
    layers = [np.add.reduceat(v, starts, axis=1) for v in (ours, theirs)]
    scale = np.maximum(layers[0], 1.0)  # below 1 MeV the difference is taken relative to 1 MeV
    return Parity(
        n,
        float((np.abs(layers[0] - layers[1]) / scale).max()),
        float((np.abs(ours - theirs).max(1) / np.maximum(ours.sum(1), 1.0)).max()),
        float(((ours > 0) != (theirs > 0)).mean()),
    )


def session(model: bytes | str, threads: int = 1) -> Any:
    """ONNX Runtime session on the CPU with a fixed number of threads."""
    _require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own kinds for a broken file
        raise ValueError(
            f"got {model if isinstance(model, str) else 'a graph'}, expected a valid ONNX model ({error})"
        ) from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of an exported graph: caloforge_card (JSON), geometry_digest."""
    return dict(session(str(path)).get_modelmeta().custom_metadata_map)


def run(model: Any, z: Array, particles: list[Array]) -> Array:
    """Voxel energies [MeV] (N, V) of a session for noise (N, Z) and the arrays of CONDITIONS, and of pdg if needed."""
    names = ("noise", *CONDITIONS, "pdg")[: 1 + len(particles)]
    feed = {name: np.asarray(v, np.float32) for name, v in zip(names, (z, *particles), strict=True)}
    return np.asarray(model.run([OUTPUT], feed)[0])


def _typical(fast: FastSim) -> list[float]:
    middle = [0.5 * (low + high) for low, high in (fast.card.valid[name] for name in CONDITIONS)]
    return [*middle, float(fast.card.pdg[0])] if "pdg" in fast.inputs else middle


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FileNotFoundError(
            f"got no package {error.name}, expected the extra onnx; install it with: pip install 'caloforge[onnx]'"
        ) from None


callable_module(__name__)
