"""Put the shipped Geant4 samples together.

    caloforge simulate calogan --particle e+ --energy 1..100GeV -n 5000 --seed 2 -o eplus_test.h5
    caloforge simulate calogan --particle e+ --energy 1..100GeV -n 8000 --seed 1 -o eplus_train.h5
    python benchmarks/make_samples.py eplus_test.h5 eplus_train.h5 calogan_eplus.h5

The last file, optional, is a sample in the CaloGAN layout made by the same Geant4 with seeds 3011, 3012; it joins the
train part. The test part is one production of its own.
"""

import sys
from typing import Any

from caloforge import hub, io
from caloforge.datasets import open_showers
from caloforge.showers import Showers

KEPT = ("gun", "engine", "physics_list", "cut_mm", "data_tables", "detector", "scored", "caloforge")


def main(test: str, *train: str) -> None:
    """Write the test part and the joined train parts where the package ships them."""
    io.write(open_showers(test), hub.DATA / "samples" / "calogan-eplus-test.h5", force=True)
    parts = [open_showers(path) for path in train]
    origins: list[dict[str, Any]] = [dict(p.provenance) | {"n": len(p)} for p in parts]
    provenance = {key: origins[0][key] for key in KEPT} | {"parts": origins, "seed": [p.get("seed") for p in origins]}
    joined = Showers.concat(parts)
    out = Showers(joined.geometry, joined.incident, joined.energy, joined.overflow, provenance)
    io.write(out, hub.DATA / "samples" / "calogan-eplus-train.h5", force=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
