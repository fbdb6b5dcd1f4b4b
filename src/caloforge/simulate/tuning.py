"""Constants of the parametric simulator that belong to one detector, and the card that keeps them.

The defaults are the textbook (Grindhammer and Peters, hep-ex/0001020). Lengths across the shower are in Moliere radii,
along it in radiation lengths; spot energies are MeV of the incident particle's energy, before the sampling fraction.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import io

if TYPE_CHECKING:
    from .detectors import Detector

FORMAT, VERSION = "caloforge-parametric", 1
FOLDER = Path(__file__).parent.parent / "data" / "parametric"


@dataclass(frozen=True)
class Tuning:
    """Factors on the textbook's numbers (1), shifts of them (0), and what the textbook does not have.

    depth, depth_shift: on the depth T of the maximum [X0]; alpha, alpha_shift: on the shape of the gamma distribution;
    depth_spread, alpha_spread: on the spreads of ln T and ln alpha; correlation: added to theirs.

    core, tail, share: on the radii R_C, R_T and the core's share p; core_growth: on the slope of R_C with depth;
    tail_early: on the first term of R_T, which falls with depth; core_power, tail_power: exponents nu of the radial
    functions 2 nu r R^(2 nu)/(r^2 + R^2)^(1 + nu); follow: exponent with which a shower's radial profile follows its
    own centre of gravity rather than that of the mean shower; tilt: spread of the slope of its axis at 1 GeV, falls
    with 1/sqrt(E).

    response, response_slope: on the sampling fraction, 1 at 10 GeV plus slope ln(E/10 GeV); reactions: nuclear
    reactions per GeV, each of which loses energy with density ~ x^-(1 + reaction_index) above reaction_loss [MeV].

    spot_energy: mean energy of the spots that is added on the axis to spot_floor, their energy far out [MeV]; it falls
    with radius as (1 + r^2/R_C^2)^-spot_falloff and has its maximum at the shower's maximum with the exponent
    spot_growth; spot_spread: spread of the logarithm of a spot's energy. None: spots of equal energy (the textbook),
    and nothing of what follows. halo: share of the energy that soft photons carry far, in spots of halo_energy [MeV],
    by a length from the gamma distribution of order 2 and scale halo_range [Moliere radii]; halo_forward: asymmetry of
    their direction. neutrons: deposits for each reaction of the lowest loss, of neutron_energy [MeV, visible],
    neutron_spread (of the logarithm) and neutron_range.

    layers: factor on the energy of each layer, () for none. noise: spread of the electronic noise of a voxel,
    threshold: below it a voxel reads 0; both in MeV of visible energy, before the readout's factor.
    """

    depth: float = 1.0
    depth_shift: float = 0.0
    alpha: float = 1.0
    alpha_shift: float = 0.0
    depth_spread: float = 1.0
    alpha_spread: float = 1.0
    correlation: float = 0.0

    core: float = 1.0
    core_growth: float = 1.0
    core_power: float = 1.0
    tail: float = 1.0
    tail_early: float = 1.0
    tail_power: float = 1.0
    share: float = 1.0
    follow: float = 1.0
    tilt: float = 0.0

    response: float = 1.0
    response_slope: float = 0.0
    reactions: float = 0.0
    reaction_loss: float = 8.0
    reaction_index: float = 1.5

    spot_energy: float | None = None
    spot_floor: float = 1.5
    spot_falloff: float = 0.0
    spot_growth: float = 0.0
    spot_spread: float = 0.0
    halo: float = 0.0
    halo_energy: float = 0.7
    halo_range: float = 1.0
    halo_forward: float = 0.0
    neutrons: float = 0.0
    neutron_energy: float = 0.005
    neutron_spread: float = 1.0
    neutron_range: float = 4.0

    layers: tuple[float, ...] = ()
    noise: float = 0.0
    threshold: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(float(v) for v in self.layers))
        for name, (low, high) in (dict.fromkeys(POSITIVE, (1e-9, np.inf)) | LIMITS).items():
            value = getattr(self, name)
            if name == "spot_energy" and value is None:
                continue
            if not low <= value <= high:
                raise ValueError(f"got {name}={value:g}, expected {low:g}..{high:g}; correct it")
        if self.spot_energy is not None and self.spot_falloff >= self.core_power:
            raise ValueError(
                f"got spot_falloff={self.spot_falloff:g}, expected less than core_power={self.core_power:g}: there "
                "would be infinitely many spots; lower it"
            )
        if self.spot_energy is None and (self.halo or self.neutrons):
            raise ValueError("got a halo or neutrons and spots of equal energy, expected spot_energy; give it")


POSITIVE = (
    "depth", "alpha", "core", "core_growth", "core_power", "tail", "tail_power", "response", "reaction_loss",
    "spot_energy", "spot_floor", "halo_energy", "halo_range", "neutron_energy", "neutron_range",
)  # fmt: skip
LIMITS = {
    "depth_shift": (-10, 10), "alpha_shift": (-10, 10), "depth_spread": (0, 10), "alpha_spread": (0, 10),
    "correlation": (-2, 2), "tail_early": (0, 10), "share": (0, 10), "follow": (0, 1), "tilt": (0, 1),
    "response_slope": (-1, 1), "reactions": (0, 100), "reaction_index": (0.5, 10), "spot_falloff": (0, 10),
    "spot_growth": (0, 10), "spot_spread": (0, 3), "halo": (0, 1), "halo_forward": (-0.99, 0.99), "neutrons": (0, 1e4),
    "neutron_spread": (0, 3), "noise": (0, 1e6), "threshold": (0, 1e6),
}  # fmt: skip


def write_card(path: str | Path, detector: "Detector", constants: Mapping[str, Any], origin: Mapping[str, Any], *,
               force: bool = False) -> None:  # fmt: skip
    """Constants of a detector as JSON; origin: how they were found."""
    card = {
        "format": FORMAT, "format_version": VERSION, "detector": detector.name,
        "geometry_digest": detector.geometry.digest(), "constants": dict(constants), "tuned": dict(origin),
    }  # fmt: skip
    with io.new_file(path, force=force) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n")


def card_file(name: str | Path) -> Path:
    """File of a card: a path to one, or the name of a shipped one (calogan-eplus)."""
    shipped = FOLDER / f"{name}.json"
    return shipped if shipped.is_file() and not Path(name).exists() else Path(name)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card in a file: detector, geometry_digest, constants (those of ``Tuning``, stochastic, spots), tuned."""
    path = card_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"got {path}, expected the card of a parametric simulator; make one: caloforge tune")
    try:
        card = json.loads(path.read_text())
        known = isinstance(card, dict) and card.get("format") == FORMAT
    except (UnicodeDecodeError, json.JSONDecodeError):
        known = False
    if not known:
        raise ValueError(f"got {path}, expected the card of a parametric simulator (JSON); make one: caloforge tune")
    if card["format_version"] > VERSION:
        raise ValueError(
            f"got {path} of format version {card['format_version']}, expected at most {VERSION}; update caloforge"
        )
    names = {f.name for f in fields(Tuning)} | {"stochastic", "spots"}
    odd = sorted(set(card["constants"]) ^ names)
    if odd:
        raise ValueError(f"got {path} with the constant {odd[0]!r} amiss, expected {', '.join(sorted(names))}")
    return dict(card)


def require_detector(card: Mapping[str, Any], detector: "Detector", path: str | Path) -> None:
    """Raise ValueError unless the card is of this detector."""
    if card["geometry_digest"] != detector.geometry.digest():
        raise ValueError(
            f"got card {path} of detector {card['detector']!r} (digest {card['geometry_digest']}), expected one of "
            f"{detector.name!r} (digest {detector.geometry.digest()}); tune this detector or choose its card"
        )


def constants(stochastic: float, spots: float, tuning: Tuning) -> dict[str, Any]:
    """All constants as plain data."""
    return {"stochastic": stochastic, "spots": spots} | vars(tuning)
