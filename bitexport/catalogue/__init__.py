"""The published ternary models that bitexport is tested with, in their published layout."""

from bitexport.catalogue.models import MODELS
from bitexport.catalogue.published import PublishedModel, Storage

__all__ = ["MODELS", "PublishedModel", "Storage"]
