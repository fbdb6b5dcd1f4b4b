"""Jet images: boosted W bosons and QCD jets from Pythia 8 and FastJet, the sample of LAGAN (de Oliveira, Paganini,
Nachman, 1701.05927), as Showers on a one-layer geometry of 25 x 25 pixels.

pp at 14 TeV, W' -> W Z with W -> quarks and Z -> neutrinos, or HardQCD. Visible final particles fill towers of 0.1 x
0.1 in (eta, phi), each a massless four-vector. The leading anti-kT jet of R = 1.0 is trimmed (kT, R = 0.3, 5 % of its
pT) and kept with |eta| < 2, 250 < pT < 300 GeV and 60 < m < 100 GeV. Then it is centred on its leading subjet S1,
rotated so that the second one S2 lies straight below (delta phi < 0), and mirrored so that the right half (delta eta >
0) has more.

The incident "particle" of an image is its jet: energy is the pT of the trimmed jet [MeV], pdg 24 for a W, 21 for QCD.
The axes are x = delta eta, y = delta phi (no lengths: they have no unit), pixels hold pT [MeV]. Needs the extra jets.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..geometry import Array, Geometry, Layer, regular
from ..showers import Incident, Showers
from .cluster import ClusterConfig, choose_cluster
from .production import Plan, produce_blocks
from .pythia import QCD, W, events

CLASSES = {"W": W, "QCD": QCD}
N_PIXELS, HALF_WIDTH = 25, 1.25
BLOCK = 200  # jets per start of Pythia: a start takes a second, and makes a block depend on its index alone
COLUMNS = ("pt", "eta", "phi", "mass", "delta_r", "tau_1", "tau_2", "tau_3")
Rotation = Literal["constituents", "spline"]


def geometry() -> Geometry:
    """One layer of 25 x 25 pixels in (delta eta, delta phi), both from -1.25 to 1.25."""
    edges = regular(-HALF_WIDTH, HALF_WIDTH, N_PIXELS)
    return Geometry("jets", (Layer("cartesian", edges, edges),))


@dataclass(frozen=True)
class JetConfig:
    """How jets are made. Energies in GeV, as in the commands of Pythia.

    classes: "W", "QCD" or both in equal numbers; wprime_mass: half of it is where pT(W) peaks; pt_hat: range of the QCD
    scattering; rotation: of the constituents before they fill pixels, or of the image by a cubic spline, as in the
    paper, which leaves ringing pixels; below ``smallest`` [GeV] a pixel is empty; early: events that can hardly pass
    are given up before they are complete, which are half of them; one or two jets in a hundred are lost (docs/log.md).
    """

    classes: tuple[Literal["W", "QCD"], ...] = ("W", "QCD")
    rotation: Rotation = "constituents"
    wprime_mass: float = 575.0
    pt_hat: tuple[float, float] = (200.0, 400.0)
    pt: tuple[float, float] = (250.0, 300.0)
    mass: tuple[float, float] = (60.0, 100.0)
    smallest: float = 1e-3
    early: bool = True

    def __post_init__(self) -> None:
        if not self.classes or any(name not in CLASSES for name in self.classes):
            raise ValueError(f"got jet classes {self.classes}, expected some of {', '.join(CLASSES)}; choose from them")
        for name in ("pt_hat", "pt", "mass"):
            low, high = getattr(self, name)
            if not 0 <= low < high < math.inf:
                raise ValueError(f"got {name} {low:g}..{high:g} GeV, expected 0 <= low < high; correct it")
        if self.rotation not in ("constituents", "spline"):
            raise ValueError(f"got rotation {self.rotation!r}, expected constituents or spline; choose one")


@dataclass(frozen=True)
class Jet:
    """A trimmed jet: subjets [(pT, eta, phi), ...] by falling pT; constituents (n, 3) of pT, eta, phi, massless."""

    pt: float
    eta: float
    phi: float
    mass: float
    subjets: Array
    constituents: Array

    @property
    def delta_r(self) -> float:
        """Distance of the two leading subjets, 0 if there is only one."""
        if len(self.subjets) < 2:
            return 0.0
        eta, phi = self.subjets[1, 1:] - self.subjets[0, 1:]
        return float(np.hypot(eta, _wrapped(phi)))


class Jets:
    """Pythia and FastJet: ``batches`` yields the selected jets of a class. Cannot be given its particles."""

    def __init__(self, config: JetConfig) -> None:
        _require_packages()
        self.config = config

    def batches(self, pdg: int, seed: int) -> Iterator[list[Jet]]:
        """The selected jets of some events at a time, without end; the same seed gives the same jets."""
        for batch in events(self.config, pdg, seed):
            found = trimmed_leading_jets([towers(particles) for particles in batch])
            yield [jet for jet in found if jet is not None and _selected(jet, self.config)]

    def block(self, pdg: int, n: int, seed: int) -> tuple[Showers, dict[str, Array]]:
        """n jets of one class as images, and their columns (N,) from FastJet: pt and mass in MeV."""
        jets = list(islice(chain.from_iterable(self.batches(pdg, seed)), n))
        taus = subjettiness([jet.constituents for jet in jets])
        columns = {name: np.array([getattr(jet, name) for jet in jets]) for name in COLUMNS[:5]}
        columns |= {f"tau_{k + 1}": taus[:, k] for k in range(3)}
        columns["pt"], columns["mass"] = columns["pt"] * 1e3, columns["mass"] * 1e3
        images = np.stack([image(jet, self.config.rotation, self.config.smallest) for jet in jets])
        incident = Incident(columns["pt"], pdg=np.full(n, pdg))
        showers = Showers(geometry(), incident, 1e3 * images.reshape(n, -1), None, {"engine": "Pythia 8"})
        return showers, columns

    def provenance(self) -> dict[str, Any]:
        """Engines and settings, plain data."""
        from importlib.metadata import version

        versions = f"Pythia {version('pythia8mc')}, FastJet {version('fastjet')}"
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.config).items()}
        energies = [1e3 * limit for limit in self.config.pt]  # the incident energy is the pT of the jet
        return {"engine": versions, "settings": settings, "energy_mev": energies}


def produce_jets(
    path: str | Path, config: JetConfig, *, n: int, seed: int, workers: int = 1,
    cluster: ClusterConfig | str | Path | None = None, shard: tuple[int, int] | None = None, force: bool = False,
    command: str = "", progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Write n jet images, the classes in turn block by block, and their columns; continues where it was interrupted."""
    if n < 1:
        raise ValueError(f"got n={n} jets, expected at least 1; raise it")
    provenance = Jets(config).provenance() | {"seed": seed, "command": command}
    plan = Plan(partial(Jets, config), _make_block, lambda k: (n, seed, k), n, _block_size(config, n), geometry(),
                provenance)  # fmt: skip
    chosen = choose_cluster(workers, cluster)
    produce_blocks(plan, path, chosen, shard=shard, force=force, progress=progress)


def _block_size(config: JetConfig, n: int) -> int:
    return min(BLOCK, -(-n // len(config.classes)))


def _make_block(jets: Jets, n: int, seed: int, index: int) -> tuple[Showers, dict[str, Array]]:
    size = _block_size(jets.config, n)
    pdg = CLASSES[jets.config.classes[index % len(jets.config.classes)]]
    child = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint32)[0]
    return jets.block(pdg, min(size, n - index * size), int(child) % 900_000_000 + 1)


def towers(particles: Array) -> Array:
    """Momenta (n, 4) of px, py, pz, E [GeV] -> massless towers (m, 3) of pT, eta, phi: 0.1 x 0.1 with |eta| < 5."""
    px, py, pz, energy = particles.T
    pt = np.hypot(px, py)
    with np.errstate(divide="ignore"):
        eta = np.where(pt > 0, np.arcsinh(pz / np.where(pt > 0, pt, 1)), np.inf)
    inside = np.abs(eta) < 5
    i = np.floor(10 * (eta[inside] + 5)).astype(int)
    j = np.floor(10 * (np.arctan2(py, px)[inside] + 10)).astype(int)
    cells, where = np.unique(i * 200 + j, return_inverse=True)
    summed = np.bincount(where, weights=energy[inside], minlength=len(cells))
    centre_eta, centre_phi = (cells // 200 + 0.5) / 10 - 5, (cells % 200 + 0.5) / 10 - 10
    return np.stack([summed / np.cosh(centre_eta), centre_eta, centre_phi], axis=1)


def trimmed_leading_jets(cells: list[Array]) -> list[Jet | None]:
    """Event by event, the leading anti-kT jet (R = 1.0) of massless cells (m, 3) of pT, eta, phi, trimmed.

    None where that jet has less than 10 GeV. Many events at once, because most of the time goes into calls.
    """
    import fastjet

    momenta = [_momenta(event) for event in cells]
    leading = []
    for parts, p in zip(_clusters(momenta, fastjet.antikt_algorithm, 1.0), momenta, strict=True):
        leading.append(parts[int(np.argmax(_kinematics(p, parts)[:, 0]))])
    inside = [p[constituents] for p, constituents in zip(momenta, leading, strict=True)]
    subjets = _clusters(inside, fastjet.kt_algorithm, 0.3)
    return [
        _trimmed(p, event[constituents], parts)
        for p, event, constituents, parts in zip(inside, cells, leading, subjets, strict=True)
    ]


def _trimmed(momenta: Array, cells: Array, parts: list[list[int]]) -> Jet | None:
    """A jet of all these momenta (n, 4), less the parts, lists of their indices, with under 5 % of its pT."""
    jet = _kinematics(momenta, [list(range(len(momenta)))])[0]
    if jet[0] < 10:
        return None
    subjets = _kinematics(momenta, parts)
    order = [k for k in np.argsort(-subjets[:, 0]) if subjets[k, 0] >= 0.05 * jet[0]]
    if not order:
        return None
    kept = [index for k in order for index in parts[k]]
    pt, eta, phi, mass = _kinematics(momenta, [kept])[0]
    return Jet(pt, eta, phi, mass, subjets[order, :3], cells[kept])


def _clusters(events: list[Array], algorithm: int, radius: float) -> list[list[list[int]]]:
    """The jets of each event of momenta (n, 4) as lists of the indices of their constituents."""
    import fastjet

    sequence = fastjet.ClusterSequence(_ragged(events), fastjet.JetDefinition(algorithm, radius))
    return sequence.constituent_index(0.0).to_list()  # type: ignore[no-any-return]


def _ragged(events: list[Array]) -> Any:
    import awkward as ak

    momenta = dict(zip(("px", "py", "pz", "E"), np.concatenate(events).T, strict=True))
    return ak.unflatten(ak.zip(momenta), [len(event) for event in events])


def _momenta(cells: Array) -> Array:
    """Massless cells (n, 3) of pT, eta, phi -> momenta (n, 4) of px, py, pz, E."""
    pt, eta, phi = cells.T
    return np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], axis=1)


def _kinematics(momenta: Array, groups: list[list[int]]) -> Array:
    """pT, eta, phi and mass (k, 4) of the sum of each group of momenta (n, 4)."""
    px, py, pz, energy = np.array([momenta[group].sum(axis=0) for group in groups]).T
    pt = np.hypot(px, py)
    mass = np.sqrt(np.maximum(energy**2 - pt**2 - pz**2, 0.0))
    return np.stack([pt, np.arcsinh(pz / pt), np.arctan2(py, px), mass], axis=1)


def image(jet: Jet, rotation: Rotation, smallest: float) -> Array:
    """Pixels (25, 25) of pT [GeV] over (delta eta, delta phi): sums of pT, centred, rotated and mirrored."""
    pt, eta, phi = jet.constituents.T
    eta, phi = eta - jet.subjets[0, 1], _wrapped(phi - jet.subjets[0, 2])
    angle = _down(jet, pt, eta, phi)
    if rotation == "constituents":
        eta, phi = np.cos(angle) * eta - np.sin(angle) * phi, np.sin(angle) * eta + np.cos(angle) * phi
    pixels = _pixels(pt, eta, phi)
    if rotation == "spline":
        from scipy.ndimage import affine_transform

        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = np.full(2, (N_PIXELS - 1) / 2)
        pixels = affine_transform(pixels, matrix, centre - matrix @ centre, order=3)
    pixels = np.where(pixels < smallest, 0.0, pixels)
    middle = N_PIXELS // 2
    return pixels[::-1] if pixels[:middle].sum() > pixels[middle + 1 :].sum() else pixels


def _down(jet: Jet, pt: Array, eta: Array, phi: Array) -> float:
    """Angle that turns S2, or the principal axis of the constituents where there is only S1, to straight below."""
    if len(jet.subjets) > 1:
        x, y = jet.subjets[1, 1] - jet.subjets[0, 1], _wrapped(jet.subjets[1, 2] - jet.subjets[0, 2])
    else:
        covariance = np.cov(np.stack([eta, phi]), aweights=pt, bias=True) if len(pt) > 1 else np.eye(2)
        x, y = np.linalg.eigh(covariance)[1][:, 1]
        if np.sum(pt * (x * eta + y * phi)) < 0:
            x, y = -x, -y
    return float(-np.pi / 2 - np.arctan2(y, x))


def _pixels(pt: Array, eta: Array, phi: Array) -> Array:
    edges = np.linspace(-HALF_WIDTH, HALF_WIDTH, N_PIXELS + 1)
    return np.histogram2d(eta, phi, bins=(edges, edges), weights=pt)[0]


def subjettiness(jets: list[Array], axes: str = "OnePass_WTA_KT_Axes") -> Array:
    """tau_1, tau_2, tau_3 (N, 3) of massless constituents (n, 3) of pT, eta, phi, by FastJet.

    tau_k = sum pT min_a dR_a / (R0 sum pT) over the k axes a, beta = 1, R0 = 1 (Thaler and Van Tilburg, 1011.2268).
    """
    import fastjet

    ragged = _ragged([_momenta(jet) for jet in jets])
    sequence = fastjet.ClusterSequence(ragged, fastjet.JetDefinition(fastjet.kt_algorithm, 1.0))
    found = sequence.njettiness("NormalizedMeasure", axes, [1, 2, 3], beta=1.0, R0=1.0)
    return np.asarray(found, dtype=np.float64).reshape(len(jets), 3)


def _wrapped(phi: Any) -> Any:
    return (phi + np.pi) % (2 * np.pi) - np.pi


def _selected(jet: Jet, config: JetConfig) -> bool:
    inside = config.pt[0] < jet.pt < config.pt[1] and config.mass[0] < jet.mass < config.mass[1]
    return inside and abs(jet.eta) < 2


def _require_packages() -> None:
    try:
        import awkward  # noqa: F401
        import fastjet  # noqa: F401
        import pythia8mc  # noqa: F401
    except ImportError as error:
        raise FileNotFoundError(
            f"got no package {error.name}, expected the extra jets; install it with: pip install 'caloforge[jets]'"
        ) from None
