"""What the model is asked to get right."""

from swapfast.losses.collator import BatchLoss, LossCollator
from swapfast.losses.registry import LOSSES, get_loss

__all__ = ["LOSSES", "BatchLoss", "LossCollator", "get_loss"]
