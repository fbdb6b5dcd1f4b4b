"""The shower shapes of CaloGAN under their published names (Paganini, de Oliveira, Nachman, 1712.10321, section 4).

With three layers there are twenty: E_l, E_tot, f_l = E_l/E_tot, the depth d, E_ratio,l, the depth-weighted energy l_d,
the lateral widths sigma_l along the first axis, the shower depth s_d and its width sigma_sd, and the sparsity, which
here is the fraction of voxels *above* zero. All are columns of ``observables`` already, energies in MeV (the published
figures have GeV), lengths in mm.
"""

from collections.abc import Mapping

from ..geometry import Array
from ..showers import Showers
from .observables import observables

OF_SHOWER = {
    "E_tot": "total_energy", "d": "depth", "l_d": "lateral_depth", "s_d": "shower_depth",
    "sigma_sd": "shower_depth_width",
}  # fmt: skip
OF_LAYER = {
    "E_": "layer_energy_", "f_": "fraction_", "E_ratio,": "e_ratio_", "sigma_": "lateral_width_",
    "sparsity_": "occupied_",
}  # fmt: skip


def calogan_names(n_layers: int = 3) -> dict[str, str]:
    """Published name -> name in ``observables``, for any number of layers."""
    layers = {p + str(i): ours + str(i) for p, ours in OF_LAYER.items() for i in range(n_layers)}
    return OF_SHOWER | layers


def calogan_shapes(showers: Showers, values: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Published name -> (N,) float64. values: the observables of these showers, if they are known already."""
    known = observables(showers) if values is None else values
    names = calogan_names(showers.geometry.n_layers)
    absent = [ours for ours in names.values() if ours not in known]
    if absent:
        raise ValueError(
            f"got geometry {showers.geometry.name!r} without {', '.join(absent)}, expected layers that resolve x; use "
            "caloforge.evaluate.observables"
        )
    return {published: known[ours] for published, ours in names.items()}
