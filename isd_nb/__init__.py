"""Self-supervised learning by Iterative Similarity Distillation: the names that code of your own begins with."""
import sys
from importlib import import_module

from ._moved import MovedModules

__version__ = "0.1.0"

_PLACES = {  # each is imported when it is first used: `import isd_nb` itself takes milliseconds
    "AnchorQueue": "queue", "soft_labels": "loss", "soft_label_loss": "loss", "streaming_soft_label_loss": "loss",
    "EMATeacher": "teacher", "ISD": "isd", "Method": "method", "Output": "method", "STRONG": "views", "WEAK": "views", "Views": "views",
    "ImageSet": "data", "Encoder": "encoders", "load_encoder": "encoders", "embed": "evaluation", "knn_accuracy": "evaluation",
    "linear_accuracy": "evaluation", "train": "engine.whole", "InputError": "errors"}
__all__ = [*_PLACES, "__version__"]

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules())


def __getattr__(name: str) -> object:
    "The public name, from its module."
    if name not in _PLACES:
        raise AttributeError(f"module 'isd_nb' has no attribute {name!r}")
    return getattr(import_module(f"isd_nb.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
