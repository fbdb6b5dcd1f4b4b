import pytest

from caloforge.simulate.materials import MASSES, NIST, SYMBOLS, Material, from_fractions, nist

# Review of Particle Physics: X0 [g/cm2], nuclear interaction length [g/cm2], minimum ionisation [MeV cm2/g].
PDG = {
    "G4_C": (42.70, 85.8, 1.742), "G4_Al": (24.01, 107.2, 1.615), "G4_Si": (21.82, 108.4, 1.664),
    "G4_lAr": (19.55, 119.7, 1.508), "G4_Fe": (13.84, 132.1, 1.451), "G4_Cu": (12.86, 137.3, 1.403),
    "G4_W": (6.76, 191.9, 1.145), "G4_Pb": (6.37, 199.6, 1.122), "G4_POLYSTYRENE": (43.79, 77.1, 1.936),
    "G4_AIR": (36.62, 90.1, 1.815), "G4_PbWO4": (7.39, 168.3, 1.229),
}  # fmt: skip


def test_there_is_a_mass_for_every_element() -> None:
    assert len(SYMBOLS) == len(MASSES) == 92
    assert MASSES[SYMBOLS.index("Pb")] == 207.2


@pytest.mark.parametrize("name", PDG)
def test_lengths_and_losses_are_those_of_the_review_of_particle_physics(name: str) -> None:
    m, (x0, interaction, loss) = nist(name), PDG[name]
    assert m.x0 * m.density / 10 == pytest.approx(x0, rel=0.005)
    assert m.interaction_length * m.density / 10 == pytest.approx(interaction, rel=0.05)
    assert 10 * m.min_ionization / m.density == pytest.approx(loss, rel=0.06)


def test_critical_energies() -> None:
    assert nist("G4_Pb").critical == pytest.approx(7.43, rel=0.03)
    assert nist("G4_lAr").critical == pytest.approx(32.84, rel=0.05)


def test_the_table_agrees_with_geant4() -> None:
    calzone = pytest.importorskip("calzone")
    for name in NIST:
        found = calzone.describe(material=name)
        assert nist(name).density == pytest.approx(found.density, rel=1e-3), name
        for symbol, share in found.composition:
            assert nist(name).fractions.get(symbol, 0.0) == pytest.approx(share, abs=2e-3), (name, symbol)


def test_other_nist_materials_are_asked_of_geant4() -> None:
    pytest.importorskip("calzone")
    assert nist("G4_STAINLESS-STEEL").x0 == pytest.approx(17.4, rel=0.03)


def test_atoms_and_shares_of_mass_are_two_ways_to_say_the_same() -> None:
    water = Material("Water", 1.0, (("H", 2), ("O", 1)))
    same = from_fractions("Water", 1.0, water.fractions)
    assert same.x0 == pytest.approx(water.x0)
    assert sum(same.fractions.values()) == pytest.approx(1)


def test_impossible_materials_are_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"got material 'G4_NOPE', expected a NIST name of Geant4 such as G4_Pb"):
        nist("G4_NOPE")
    with pytest.raises(ValueError, match="got element 'Xx' in A"):
        Material("A", 1, (("Xx", 1),))
    with pytest.raises(ValueError, match="got density 0"):
        Material("A", 0, (("C", 1),))
    with pytest.raises(ValueError, match="got 0 atoms of C"):
        Material("A", 1, (("C", 0),))
    with pytest.raises(ValueError, match="without elements"):
        Material("A", 1, ())
