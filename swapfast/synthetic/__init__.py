"""Draws procedural faces: two shaded 3-D people whose landmarks, masks and true swap are known exactly."""

from .dataset import Spread, synthesize
from .identity import CUTS, Identity, Shape, draw_identities, draw_person
from .render import RenderedFace, render
from .scene import Expression, Light, Pose, Scene, draw_scene

__all__ = [
    "CUTS",
    "Expression",
    "Identity",
    "Light",
    "Pose",
    "RenderedFace",
    "Scene",
    "Shape",
    "Spread",
    "draw_identities",
    "draw_person",
    "draw_scene",
    "render",
    "synthesize",
]
