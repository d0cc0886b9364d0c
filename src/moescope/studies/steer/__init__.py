"""Experts banned, forced, boosted or scaled, or neurons switched off: what that does, beside random ones."""

from moescope.studies.steer.effects import EffectSettings
from moescope.studies.steer.settings import Ablation, Steering
from moescope.studies.steer.study import steer_study

__all__ = ["Ablation", "EffectSettings", "Steering", "steer_study"]
