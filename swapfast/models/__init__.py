"""The networks."""

from swapfast.models.autoencoder import FaceAutoencoder
from swapfast.models.registry import MODELS, build_model

__all__ = ["MODELS", "FaceAutoencoder", "build_model"]
