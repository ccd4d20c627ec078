"""The networks."""

from swapfast.models.autoencoder import SIDES, FaceAutoencoder
from swapfast.models.registry import MODELS, build_model

__all__ = ["MODELS", "SIDES", "FaceAutoencoder", "build_model"]
