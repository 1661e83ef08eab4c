"""Self-supervised learning by Iterative Similarity Distillation: the names that code of your own begins with."""
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from ._moved import MovedModules

if TYPE_CHECKING:  # the same names for editors and type checkers, which do not run `__getattr__`
    from .data import ImageSet as ImageSet
    from .encoders import Encoder as Encoder, load_encoder as load_encoder
    from .engine.whole import train as train
    from .errors import InputError as InputError
    from .evaluation import (
        embed as embed, few_label_accuracy as few_label_accuracy, knn_accuracy as knn_accuracy, linear_accuracy as linear_accuracy)
    from .isd import ISD as ISD
    from .loss import (
        soft_label_loss as soft_label_loss, soft_labels as soft_labels, streaming_soft_label_loss as streaming_soft_label_loss)
    from .method import Method as Method, Output as Output
    from .queue import AnchorQueue as AnchorQueue
    from .recipe import Recipe as Recipe, find_recipe as find_recipe
    from .teacher import EMATeacher as EMATeacher
    from .views import STRONG as STRONG, WEAK as WEAK, ViewRecipe as ViewRecipe, Views as Views

__version__ = "0.1.0"

_PLACES = {  # each is imported when it is first used: `import isd_nb` itself takes milliseconds
    "AnchorQueue": "queue", "soft_labels": "loss", "soft_label_loss": "loss", "streaming_soft_label_loss": "loss",
    "EMATeacher": "teacher", "ISD": "isd", "Method": "method", "Output": "method", "STRONG": "views", "WEAK": "views", "Views": "views",
    "ViewRecipe": "views", "Recipe": "recipe", "find_recipe": "recipe", "few_label_accuracy": "evaluation",
    "ImageSet": "data", "Encoder": "encoders", "load_encoder": "encoders", "embed": "evaluation", "knn_accuracy": "evaluation",
    "linear_accuracy": "evaluation", "train": "engine.whole", "InputError": "errors"}
__all__ = [*_PLACES, "__version__"]

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules())


if not TYPE_CHECKING:
    def __getattr__(name: str) -> object:
        "The public name, from its module."
        if name not in _PLACES:
            raise AttributeError(f"module 'isd_nb' has no attribute {name!r}")
        return getattr(import_module(f"isd_nb.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
