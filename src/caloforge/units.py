"""Units at the borders. Inside caloforge everything is MeV, mm, rad, ns; text from users carries its unit."""

import math
import re

MEV_PER = {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}
RAD_PER = {"rad": 1.0, "mrad": 1e-3, "deg": math.pi / 180}
MM_PER = {"mm": 1.0, "cm": 10.0, "m": 1e3}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ENERGY = re.compile(rf"^\s*({_NUMBER})\s*(?:\.\.\s*({_NUMBER})\s*)?([a-zA-Z]*)\s*$")


def parse_energy(text: str) -> tuple[float, float]:
    """Kinetic energy range in MeV from text such as ``1..100GeV`` or ``50GeV`` (then low == high).

    Raises ValueError when the unit is missing or unknown, or when an energy is not positive and finite.
    """
    example = "expected an energy such as 50GeV or 1..100GeV"
    match = _ENERGY.match(text)
    if match is None:
        raise ValueError(f"got energy {text!r}, {example}; write it as LOW..HIGHUNIT")
    low, high, unit = match[1], match[2] or match[1], match[3]
    if unit not in MEV_PER:
        said = f"unknown unit {unit!r}" if unit else "no unit"
        raise ValueError(f"got energy {text!r} with {said}, {example}; add one of {', '.join(MEV_PER)}")
    a, b = float(low) * MEV_PER[unit], float(high) * MEV_PER[unit]
    if not (0 < a <= b < math.inf):
        raise ValueError(f"got energy {text!r}, expected 0 < low <= high; give positive energies in rising order")
    return a, b


def parse_energies(text: str) -> tuple[float, ...]:
    """Limits of a range, or the energies of a list such as ``256,512,1024MeV``, in MeV."""
    if "," not in text:
        return parse_energy(text)
    *most, last = text.split(",")
    match = _ENERGY.match(last)
    unit = match[3] if match else ""
    out = tuple(parse_energy(part + unit if part.strip()[-1:].isdigit() else part) for part in [*most, last])
    if any(low != high for low, high in out):
        raise ValueError(f"got energy {text!r}, expected a list of energies or one range; leave one of them away")
    return tuple(low for low, _ in out)


def pdg_id(name: str) -> int:
    """PDG number of a particle given by name (``e+``, ``gamma``, ``pi+``) or by number (``-11``)."""
    from particle import PDGID, Particle, ParticleNotFound
    from particle.exceptions import MatchingIDNotFound

    if re.fullmatch(r"[+-]?\d+", name):
        number = PDGID(int(name))
        if not number.is_valid:
            raise ValueError(f"got particle number {name}, expected a PDG number such as -11 (e+) or 22; correct it")
        return int(number)
    for look_up in (Particle.from_name, Particle.from_evtgen_name):
        try:
            return int(look_up(name).pdgid)
        except (ParticleNotFound, MatchingIDNotFound):
            continue
    raise ValueError(f"got particle {name!r}, expected a name such as e+, e-, gamma, pi+ or a PDG number; correct it")
