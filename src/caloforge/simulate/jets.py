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
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..geometry import Array, Geometry, Layer, regular
from ..showers import Incident, Showers
from .cluster import ClusterConfig, choose_cluster
from .production import Plan, produce_blocks

W, QCD = 24, 21
CLASSES = {"W": W, "QCD": QCD}
N_PIXELS, HALF_WIDTH = 25, 1.25
BLOCK = 200  # jets per start of Pythia: a start takes a second, and makes a block depend on its index alone
COLUMNS = ("pt", "eta", "phi", "mass", "delta_r", "tau_1", "tau_2", "tau_3")
Rotation = Literal["constituents", "spline"]

_COMMON = ("Beams:eCM = 14000.", "Print:quiet = on", "Random:setSeed = on")
_HARD = {
    W: ("NewGaugeBoson:ffbar2Wprime = on", "Wprime:coup2WZ = 1", "34:onMode = off", "34:onIfMatch = 24 23",
        "24:onMode = off", "24:onIfAny = 1 2 3 4", "23:onMode = off", "23:onIfAny = 12"),
    QCD: ("HardQCD:all = on",),
}  # fmt: skip


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
    are given up before they are complete, which halves the time of QCD.
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
    """Pythia and FastJet: ``events`` yields the selected jets of a class. Cannot be given its particles."""

    def __init__(self, config: JetConfig) -> None:
        _require_packages()
        self.config = config

    def jets(self, pdg: int, seed: int) -> Iterator[Jet]:
        """Selected jets without end; the same seed gives the same jets."""
        config = self.config
        pythia, _hook = _pythia(config, pdg, seed)  # Pythia keeps no reference to its hook
        while True:
            if not pythia.next():
                continue
            jet = trimmed_leading_jet(towers(_visible(pythia.event)))
            if jet is not None and _selected(jet, config):
                yield jet

    def block(self, pdg: int, n: int, seed: int) -> tuple[Showers, dict[str, Array]]:
        """n jets of one class as images, and their columns (N,) from FastJet: pt and mass in MeV."""
        chosen = self.jets(pdg, seed)
        jets = [next(chosen) for _ in range(n)]
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


def trimmed_leading_jet(cells: Array) -> Jet | None:
    """The leading anti-kT jet (R = 1.0) of massless cells (m, 3) of pT, eta, phi, trimmed; None below 10 GeV."""
    import fastjet

    found_jet = _leading(cells, fastjet.antikt_algorithm, 1.0)
    if found_jet is None:
        return None
    jet, sequence = found_jet
    parts = fastjet.ClusterSequence(list(jet.constituents()), fastjet.JetDefinition(fastjet.kt_algorithm, 0.3))
    found = fastjet.sorted_by_pt(parts.inclusive_jets(0.05 * jet.pt()))
    if not found:
        return None
    constituents = [(c.pt(), c.eta(), c.phi()) for part in found for c in part.constituents()]
    total = found[0]
    for part in found[1:]:
        total = total + part
    subjets = np.array([(part.pt(), part.eta(), part.phi()) for part in found])
    del sequence  # kept until here: its jets refer to it
    return Jet(total.pt(), total.eta(), total.phi(), max(total.m(), 0.0), subjets, np.array(constituents))


def _leading(cells: Array, algorithm: int, radius: float) -> Any:
    import fastjet

    pt, eta, phi = cells.T
    momenta = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], axis=1)
    particles = [fastjet.PseudoJet(*row) for row in momenta.tolist()]
    sequence = fastjet.ClusterSequence(particles, fastjet.JetDefinition(algorithm, radius))
    jets = sequence.inclusive_jets(10.0)
    return (max(jets, key=lambda jet: jet.pt()), sequence) if len(jets) else None


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
    import awkward as ak
    import fastjet

    counts = [len(jet) for jet in jets]
    pt, eta, phi = np.concatenate(jets).T
    flat = ak.zip({"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "E": pt * np.cosh(eta)})
    sequence = fastjet.ClusterSequence(ak.unflatten(flat, counts), fastjet.JetDefinition(fastjet.kt_algorithm, 1.0))
    found = sequence.njettiness("NormalizedMeasure", axes, [1, 2, 3], beta=1.0, R0=1.0)
    return np.asarray(found, dtype=np.float64).reshape(len(jets), 3)


def _wrapped(phi: Any) -> Any:
    return (phi + np.pi) % (2 * np.pi) - np.pi


def _selected(jet: Jet, config: JetConfig) -> bool:
    inside = config.pt[0] < jet.pt < config.pt[1] and config.mass[0] < jet.mass < config.mass[1]
    return inside and abs(jet.eta) < 2


def _visible(event: Any) -> Array:
    """Momenta (n, 4) of the final particles without neutrinos."""
    return np.array([(p.px(), p.py(), p.pz(), p.e()) for p in event if p.isFinal() and p.isVisible()])


def _pythia(config: JetConfig, pdg: int, seed: int) -> tuple[Any, Any]:
    """Pythia, ready, and the hook that it uses."""
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    low, high = config.pt_hat
    own = (f"34:m0 = {config.wprime_mass}",) if pdg == W else (
        f"PhaseSpace:pTHatMin = {low}", f"PhaseSpace:pTHatMax = {high}"
    )  # fmt: skip
    for line in (*_COMMON, f"Random:seed = {seed}", *_HARD[pdg], *own):
        if not pythia.readString(line):
            raise ValueError(f"got Pythia setting {line!r}, which this version refuses, expected one that it knows")
    hook = _early_veto(config, pdg) if config.early else None
    if hook is not None:
        pythia.setUserHooksPtr(hook)
    if not pythia.init():
        raise ValueError("got a Pythia that does not start, expected another; check the settings of the jets")
    return pythia, hook


def _early_veto(config: JetConfig, pdg: int) -> Any:
    """A hook that gives up events before they are complete, with wide margins around the selection.

    W: by the boson's pT after the hard process. QCD: by the leading jet of the partons when the evolution has come down
    to pT = 10 GeV; a trimmed mass above 60 GeV at pT = 275 GeV needs a splitting of kT > 13 GeV. What is below 10 GeV,
    mostly multiple interactions, costs most of the time.
    """
    import fastjet
    import pythia8mc

    low, high = config.pt

    class Hook(pythia8mc.UserHooks):  # type: ignore[misc, name-defined]
        def canVetoProcessLevel(self) -> bool:
            return pdg == W

        def doVetoProcessLevel(self, event: Any) -> bool:
            pt = max((p.pT() for p in event if abs(p.id()) == W), default=0.0)
            return not 0.7 * low < pt < 1.35 * high

        def canVetoPT(self) -> bool:
            return pdg == QCD

        def scaleVetoPT(self) -> float:
            return 10.0

        def doVetoPT(self, position: int, event: Any) -> bool:
            pt = np.array([(p.px(), p.py(), p.pz(), p.e()) for p in event if p.isFinal()])
            if len(pt) == 0:
                return False
            found = _leading(_massless(pt), fastjet.antikt_algorithm, 1.0)
            return found is None or not (
                0.8 * low < found[0].pt() < 1.25 * high and found[0].m() > 0.5 * config.mass[0]
            )

    return Hook()


def _massless(momenta: Array) -> Array:
    px, py, pz, _ = momenta.T
    pt = np.maximum(np.hypot(px, py), 1e-6)
    return np.stack([pt, np.arcsinh(pz / pt), np.arctan2(py, px)], axis=1)


def _require_packages() -> None:
    try:
        import awkward  # noqa: F401
        import fastjet  # noqa: F401
        import pythia8mc  # noqa: F401
    except ImportError as error:
        raise FileNotFoundError(
            f"got no package {error.name}, expected the extra jets; install it with: pip install 'caloforge[jets]'"
        ) from None
