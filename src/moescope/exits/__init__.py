"""Leave a model early with a guarantee, and name a prompt's task while it runs."""

from moescope.exits.classifier import ExitClassifier, Exits
from moescope.exits.settings import ExitSettings
from moescope.exits.store import load_exit, save_exit
from moescope.exits.study import ExitStudy, early_exit

__all__ = ["ExitClassifier", "ExitSettings", "ExitStudy", "Exits", "early_exit", "load_exit", "save_exit"]
