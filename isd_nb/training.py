"""A front for `isd_nb.engine`, kept for code that was written for earlier versions."""
from .engine.runs import open_run, read_metrics, read_recipe, write_metrics
from .engine.state import TrainState, prepare_training, save_encoders, train_step
from .engine.training import Trained, run_steps, train
from .methods.building import backbone_config, build_method, find_method, make_optimizer, methods, pick_precision, with_method
from .protocols.storage import Stopped, load_checkpoint, save_checkpoint, stop_signals, write_json
from .recipe import (
    Recipe, check_recipe, find_recipe, learning_rate, recipe_from_json, recipe_to_json, recipes, scaled_learning_rate, total_steps)
from .sources.batches import EpochSampler, seeded

__all__ = [
    "EpochSampler", "Recipe", "Stopped", "TrainState", "Trained", "backbone_config", "build_method", "check_recipe", "find_method",
    "find_recipe", "learning_rate", "load_checkpoint", "make_optimizer", "methods", "open_run", "pick_precision", "prepare_training",
    "read_metrics", "read_recipe", "recipe_from_json", "recipe_to_json", "recipes", "run_steps", "save_checkpoint", "save_encoders",
    "scaled_learning_rate", "seeded", "stop_signals", "total_steps", "train", "train_step", "with_method", "write_json", "write_metrics"]
