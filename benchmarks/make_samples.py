"""Make the Geant4 samples that the package ships: the commands, and how their files are put where they belong.

    python benchmarks/make_samples.py --list             # the commands; each takes a quarter of an hour to two hours
    python benchmarks/make_samples.py FOLDER             # puts FOLDER/NAME.h5 of every command into the package

A train and a test part are productions of their own (seeds 1 and 2); nothing that is trained sees a test part. The e+
train part is joined by 6,400 showers of the same Geant4 (calogan_eplus.h5, seeds 3011 and 3012), if that file is there.
Files are packed again with gzip level 9, which changes no number.
"""

import sys
from pathlib import Path
from typing import Any

import h5py

from caloforge import hub, io
from caloforge.datasets import open_showers
from caloforge.geometry import Array
from caloforge.showers import Showers
from caloforge.simulate.geant4 import REDUCED

COMMANDS = {
    "calogan-eplus-test": "calogan --particle e+ --energy 1..100GeV -n 5000 --seed 2",
    "calogan-eplus-train": "calogan --particle e+ --energy 1..100GeV -n 8000 --seed 1",
    "calogan-gamma-test": "calogan --particle gamma --energy 1..100GeV -n 3000 --seed 2",
    "calogan-gamma-train": "calogan --particle gamma --energy 1..100GeV -n 6000 --seed 1",
    "calogan-piplus-test": "calogan --particle pi+ --energy 1..100GeV -n 3000 --seed 2",
    "calogan-piplus-train": "calogan --particle pi+ --energy 1..100GeV -n 8000 --seed 1",
    "lhcb-eminus-test": "lhcb -n 3000 --seed 2",
    "lhcb-eminus-more": "lhcb -n 7000 --seed 5",
    "lhcb-eminus-train": "lhcb -n 8000 --seed 1",
    "par04-eminus-test": "par04-siw-coarse --energy 1..100GeV -n 1500 --seed 2",
    "par04-eminus-train": "par04-siw-coarse --energy 1..100GeV -n 4000 --seed 1",
    "ds1-gamma-test": "ds1-like-photons -n 3000 --seed 2",
    "ds1-gamma-train": "ds1-like-photons -n 6000 --seed 1",
    "jets-test": "jets -n 8000 --seed 2",
    "jets-train": "jets -n 8000 --seed 1",
}
MORE = {"calogan-eplus-train": "calogan_eplus.h5", "lhcb-eminus-test": "lhcb-eminus-more.h5"}
KEPT = ("gun", "engine", "physics_list", "cut_mm", "data_tables", "detector", "scored", "caloforge")


def pack(showers: Showers, name: str, columns: dict[str, Array]) -> None:
    """Write a shipped sample, packed as tightly as gzip does."""
    path = hub.DATA / "samples" / f"{name}.h5"
    io.write(showers, path, columns=columns, force=True)
    tight = path.with_suffix(".tmp")
    with h5py.File(path) as old, h5py.File(tight, "w") as new:
        new.attrs.update(old.attrs)

        def copy(key: str, data: Any) -> None:
            if isinstance(data, h5py.Dataset):
                new.create_dataset(key, data=data[:], maxshape=data.maxshape, chunks=data.chunks, compression="gzip",
                                   compression_opts=9)  # fmt: skip

        old.visititems(copy)
    tight.replace(path)
    print(f"{name}: {len(showers)} showers, {path.stat().st_size / 1e6:.1f} MB")


def labelled(provenance: dict[str, Any]) -> dict[str, Any]:
    """Provenance with the present label of reduced data tables."""
    out = {key: value for key, value in provenance.items() if key != "command"}
    tables = str(out.get("data_tables", ""))
    return out | ({"data_tables": REDUCED + tables.removeprefix("reduced set: ")} if tables.startswith("reduced set: ")
                  else {})  # fmt: skip


def main(folder: str) -> None:
    """Put together what lies in the folder."""
    for name, words in COMMANDS.items():
        path = Path(folder) / f"{name}.h5"
        if not path.exists():
            print(f"{name}: no {path}, left as it is")
            continue
        showers = io.read(path)
        provenance = labelled(dict(showers.provenance)) | {"command": f"caloforge simulate {words}"}
        more = Path(folder) / MORE.get(name, "none")
        if more.is_file():
            parts = [showers, open_showers(more)]
            origins = [labelled(dict(p.provenance)) | {"n": len(p)} for p in parts]
            provenance = {k: provenance[k] for k in KEPT} | {"parts": origins, "seed": [o.get("seed") for o in origins]}
            showers = Showers.concat(parts)
        if name in hub.SAMPLE_NAMES:
            whole = Showers(showers.geometry, showers.incident, showers.energy, showers.overflow, provenance)
            pack(whole, name, io.read_columns(path))


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print("\n".join(f"caloforge simulate {words} --workers 2 -o {name}.h5" for name, words in COMMANDS.items()))
    elif len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        sys.exit(__doc__)
