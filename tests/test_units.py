import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.units import MEV_PER, parse_energy, pdg_id

POSITIVE = st.floats(1e-3, 1e6)


@given(POSITIVE, POSITIVE, st.sampled_from(sorted(MEV_PER)))
def test_a_range_of_energies_is_read_in_mev(a: float, b: float, unit: str) -> None:
    low, high = sorted((a, b))
    assert parse_energy(f"{low!r}..{high!r}{unit}") == (low * MEV_PER[unit], high * MEV_PER[unit])


@given(POSITIVE, st.sampled_from(sorted(MEV_PER)))
def test_one_energy_is_a_range_of_width_zero(value: float, unit: str) -> None:
    assert parse_energy(f" {value!r} {unit} ") == (value * MEV_PER[unit],) * 2


@pytest.mark.parametrize(("text", "expected"), [
    ("1..100GeV", (1e3, 1e5)), ("50GeV", (5e4, 5e4)), ("1e3MeV", (1e3, 1e3)), (".5..2.TeV", (5e5, 2e6)),
    ("1eV", (1e-6, 1e-6)),
])  # fmt: skip
def test_energies_as_users_write_them(text: str, expected: tuple[float, float]) -> None:
    assert parse_energy(text) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "said"), [
    ("50", "no unit"), ("50 furlong", "unknown unit 'furlong'"), ("", "expected"), ("-1GeV", "0 < low"),
    ("0..1GeV", "0 < low"), ("9..1GeV", "rising order"), ("1e999GeV", "0 < low"), ("1-100GeV", "LOW..HIGHUNIT"),
    ("nanGeV", "got"),
])  # fmt: skip
def test_wrong_energies_are_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        parse_energy(text)
    assert "got energy" in str(error.value)


@pytest.mark.parametrize(
    ("name", "number"), [("e+", -11), ("e-", 11), ("gamma", 22), ("pi+", 211), ("-11", -11), ("22", 22)]
)
def test_particles_by_name_and_number(name: str, number: int) -> None:
    assert pdg_id(name) == number


@pytest.mark.parametrize("name", ["electronn", "", "0"])
def test_an_unknown_particle_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"got particle.*expected"):
        pdg_id(name)
