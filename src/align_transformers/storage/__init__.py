"""Keeping and sharing: interventions as a folder, here or on the model hub, that loads without running anything."""

from .read import Artifact, load
from .write import Contents, push, save

__all__ = ["Artifact", "Contents", "load", "push", "save"]
