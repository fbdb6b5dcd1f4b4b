"""Every model family, by name: a new one is a file, a row here, and a recipe."""

from .base import Generator, Objective, Sizes
from .calodream import CaloDREAM, CaloDREAMConfig
from .caloflow import CaloFlow, CaloFlowConfig, CaloFlowStudent, CaloFlowStudentConfig
from .calogan import CaloGAN, CaloGANConfig
from .copula import Copula, CopulaConfig
from .coupling_flow import CouplingFlow, CouplingFlowConfig
from .diffusion import Diffusion, DiffusionConfig
from .flow_matching import FlowMatching, FlowMatchingConfig
from .gan import GAN, GANConfig
from .lagan import LAGAN, LAGANConfig
from .lhcb_wgan import LHCbWGAN, LHCbWGANConfig
from .mean_flow import MeanFlow, MeanFlowConfig
from .one_step import OneStep, OneStepConfig
from .par04_vae import Par04VAE, Par04VAEConfig
from .vae import VAE, VAEConfig

ModelConfig = (
    FlowMatchingConfig
    | VAEConfig
    | CouplingFlowConfig
    | DiffusionConfig
    | CaloDREAMConfig
    | CaloFlowConfig
    | CaloFlowStudentConfig
    | CaloGANConfig
    | LHCbWGANConfig
    | LAGANConfig
    | GANConfig
    | CopulaConfig
    | OneStepConfig
    | MeanFlowConfig
    | Par04VAEConfig
)

MODELS: dict[str, tuple[type, type[Generator]]] = {
    "flow_matching": (FlowMatchingConfig, FlowMatching),
    "vae": (VAEConfig, VAE),
    "coupling_flow": (CouplingFlowConfig, CouplingFlow),
    "diffusion": (DiffusionConfig, Diffusion),
    "calodream": (CaloDREAMConfig, CaloDREAM),
    "caloflow": (CaloFlowConfig, CaloFlow),
    "caloflow_student": (CaloFlowStudentConfig, CaloFlowStudent),
    "calogan": (CaloGANConfig, CaloGAN),
    "lhcb_wgan": (LHCbWGANConfig, LHCbWGAN),
    "lagan": (LAGANConfig, LAGAN),
    "gan": (GANConfig, GAN),
    "copula": (CopulaConfig, Copula),
    "one_step": (OneStepConfig, OneStep),
    "par04_vae": (Par04VAEConfig, Par04VAE),
    "mean_flow": (MeanFlowConfig, MeanFlow),
}

__all__ = ["MODELS", "Generator", "ModelConfig", "Objective", "Sizes", "family_of"]


def family_of(config: ModelConfig) -> str:
    """Name in MODELS of a model configuration."""
    for name, (kind, _) in MODELS.items():
        if isinstance(config, kind):
            return name
    known = ", ".join(kind.__name__ for kind, _ in MODELS.values())
    raise ValueError(f"got a model configuration {type(config).__name__}, expected one of {known}; use one of them")
