"""A classifier that leaves the model early, with a bound on what that costs."""

from moescope.studies.exit.settings import ExitSettings
from moescope.studies.exit.study import ExitStudy, early_exit

__all__ = ["ExitSettings", "ExitStudy", "early_exit"]
