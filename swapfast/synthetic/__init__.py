"""Draws procedural faces: two shaded 3-D people whose landmarks, masks and true swap are known exactly."""

from .dataset import Spread, synthesize
from .identity import Identity, draw_identities
from .render import RenderedFace, render
from .scene import Expression, Light, Pose, Scene, draw_scene

__all__ = [
    "Expression",
    "Identity",
    "Light",
    "Pose",
    "RenderedFace",
    "Scene",
    "Spread",
    "draw_identities",
    "draw_scene",
    "render",
    "synthesize",
]
