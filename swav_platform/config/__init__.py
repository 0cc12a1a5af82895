"""Settings of a run: the schema, loading from YAML and the command line, and error messages."""

from swav_platform.config.data import FORMATS, Data, ImagePolicy, Source
from swav_platform.config.explain import known_keys
from swav_platform.config.learning import Method, Model, Optimiser, Train
from swav_platform.config.load import RECIPES, from_tree, load, load_with
from swav_platform.config.schema import BESIDE_RUNS, NAME, Config, ConfigError, Run, Tracking
from swav_platform.config.views import PHOTOMETRIC, Photometric, ViewGroup

__all__ = [
    "BESIDE_RUNS",
    "FORMATS",
    "NAME",
    "PHOTOMETRIC",
    "RECIPES",
    "Config",
    "ConfigError",
    "Data",
    "ImagePolicy",
    "Method",
    "Model",
    "Optimiser",
    "Photometric",
    "Run",
    "Source",
    "Tracking",
    "Train",
    "ViewGroup",
    "from_tree",
    "known_keys",
    "load",
    "load_with",
]
