"""Events of Pythia 8 for jet images: the settings, the events that are given up early, and the particles as arrays."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry import Array

if TYPE_CHECKING:
    from .jets import JetConfig

W, QCD = 24, 21
WPRIME, NEUTRINOS = 34, (12, 14, 16)
IN_RESONANCES = 5  # Pythia's word for a shower inside the decay of a resonance
READ = 20  # events read at a time: one by one takes ten times as long

_COMMON = ("Beams:eCM = 14000.", "Print:quiet = on", "Random:setSeed = on")
_HARD = {
    W: ("NewGaugeBoson:ffbar2Wprime = on", "Wprime:coup2WZ = 1", "34:onMode = off", "34:onIfMatch = 24 23",
        "24:onMode = off", "24:onIfAny = 1 2 3 4", "23:onMode = off", "23:onIfAny = 12"),
    QCD: ("HardQCD:all = on",),
}  # fmt: skip


def events(config: "JetConfig", pdg: int, seed: int) -> Iterator[list[Array]]:
    """Batches without end; an event is the momenta (n, 4) of px, py, pz, E [GeV] of its visible final particles."""
    pythia = _settings(config, pdg, seed)
    hook = _early_veto(config, pdg, pythia) if config.early else None  # Pythia keeps no reference to its hook
    if hook is not None:
        pythia.setUserHooksPtr(hook)
    if not pythia.init():
        raise ValueError("got a Pythia that does not start, expected another; check the settings of the jets")
    while True:
        batch = _visible(pythia.nextBatch(READ).prt)
        if not batch:
            raise ValueError(f"got no event in {READ} trials of Pythia, expected some; check the settings of the jets")
        yield batch


def _settings(config: "JetConfig", pdg: int, seed: int) -> Any:
    import pythia8mc

    pythia = pythia8mc.Pythia("", False)
    low, high = config.pt_hat
    own = (f"34:m0 = {config.wprime_mass}",) if pdg == W else (
        f"PhaseSpace:pTHatMin = {low}", f"PhaseSpace:pTHatMax = {high}"
    )  # fmt: skip
    for line in (*_COMMON, f"Random:seed = {seed}", *_HARD[pdg], *own):
        if not pythia.readString(line):
            raise ValueError(f"got Pythia setting {line!r}, which this version refuses, expected one that it knows")
    return pythia


def _visible(particles: Any) -> list[Array]:
    import awkward as ak

    kind = abs(particles.id)
    kept = particles.status > 0
    for neutrino in NEUTRINOS:
        kept = kept & (kind != neutrino)
    visible = particles.p[kept]
    flat = ak.flatten(visible)
    momenta = np.stack([ak.to_numpy(flat[axis]) for axis in ("px", "py", "pz", "e")], axis=1)
    each = np.split(momenta, np.cumsum(ak.to_numpy(ak.num(visible)))[:-1])
    return [event for event in each if len(event)]


def _early_veto(config: "JetConfig", pdg: int, pythia: Any) -> Any:
    """A hook that gives up events before most of their multiple interactions, which cost most of the time.

    W at a scale of 20 GeV: by the boson and its quarks, carried along with the W' as initial-state radiation pushes it.
    QCD at 4 GeV: where no jet of partons is near the selection; not earlier, as a wide, soft splitting makes 60 GeV of
    mass at a scale below 10 GeV. What that loses: docs/log.md.
    """
    import pythia8mc

    passes = _w_passes if pdg == W else _qcd_passes

    class Hook(pythia8mc.UserHooks):  # type: ignore[misc, name-defined]
        def canVetoPT(self) -> bool:
            return True

        def scaleVetoPT(self) -> float:
            return 20.0 if pdg == W else 4.0

        def doVetoPT(self, position: int, event: Any) -> bool:
            return position != IN_RESONANCES and not passes(config, event, pythia.process)

    return Hook()


def _w_passes(config: "JetConfig", event: Any, process: Any) -> bool:
    hard = next(p for p in process if p.id() in (WPRIME, -WPRIME)).p()
    pushed = next(p for p in reversed(list(event)) if p.id() in (WPRIME, -WPRIME)).p()
    quarks = [p.p() for p in process if abs(process[p.mother1()].id()) == W]
    for quark in quarks:
        quark.bstback(hard)
        quark.bst(pushed)
    boson, (softer, harder) = quarks[0] + quarks[1], sorted(quarks, key=lambda q: q.pT())
    apart = np.hypot(softer.eta() - harder.eta(), (softer.phi() - harder.phi() + np.pi) % (2 * np.pi) - np.pi)
    low, high = config.pt
    inside = 0.88 * low < boson.pT() < 1.05 * high and abs(boson.eta()) < 2.05
    return bool(inside and apart < 1.3 and softer.pT() > 0.04 * boson.pT())


def _qcd_passes(config: "JetConfig", event: Any, _process: Any) -> bool:
    import fastjet

    partons = [fastjet.PseudoJet(p.px(), p.py(), p.pz(), p.e()) for p in event if p.isFinal()]
    sequence = fastjet.ClusterSequence(partons, fastjet.JetDefinition(fastjet.antikt_algorithm, 1.0))
    (low, high), (lightest, _) = config.pt, config.mass
    return any(
        0.95 * low < jet.pt() < 1.15 * high and abs(jet.eta()) < 2.3 and jet.m() > 0.5 * lightest - 1
        for jet in sequence.inclusive_jets(0.95 * low)
    )
