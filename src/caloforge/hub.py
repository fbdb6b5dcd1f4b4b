"""Samples and models shipped with the package, by name."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
MODEL_NAMES = (
    "calogan-eplus", "calogan-eplus-vae", "calogan-eplus-gan", "calogan-gamma-gan", "calogan-piplus-gan",
    "lhcb-eminus-gan", "lhcb-wgan-paper", "jets-gan", "lagan-paper",
    "calogan-eplus-one-step", "calogan-gamma-one-step", "calogan-piplus-one-step", "lhcb-eminus-one-step",
    "ds1-gamma-one-step", "par04-eminus-one-step",
)  # fmt: skip
_SAMPLES = ("calogan-eplus", "calogan-gamma", "calogan-piplus", "lhcb-eminus", "par04-eminus", "ds1-gamma", "jets")
SAMPLE_NAMES = tuple(f"{name}-{part}" for name in _SAMPLES for part in ("train", "test"))


def model(name: str) -> Path:
    """Folder of a model: a path to one, or the name of a shipped one."""
    shipped = DATA / "models" / name
    return shipped if name in MODEL_NAMES and not Path(name).exists() else Path(name)


def sample(name: str) -> Path:
    """File of a sample: a path to one, or the name of a shipped one."""
    shipped = DATA / "samples" / f"{name}.h5"
    return shipped if name in SAMPLE_NAMES and not Path(name).exists() else Path(name)
