"""Distil an MLP layer into thousands of tiny experts, with the controls that make it evidence.

After "Secret mixtures of experts inside your LLM" (arXiv 2512.18452). :func:`distill` is the study; its parts (teachers,
pairs, students, training) can be used alone.
"""

import sys
from types import ModuleType
from typing import Any

from moescope.studies.distill.controls import CONTROLS, control_pairs
from moescope.studies.distill.data import ArrayPairs, Block, Pairs, scaling_of
from moescope.studies.distill.evaluate import Evaluation, evaluate, fvu
from moescope.studies.distill.layer_data import DataSettings, model_pairs, store_pairs
from moescope.studies.distill.neighbours import circuit_overlap, load_dictionary, nearest_directions, nearest_neurons
from moescope.studies.distill.reading import read_experts
from moescope.studies.distill.save import load_student, save_student
from moescope.studies.distill.settings import DistillSettings
from moescope.studies.distill.spec import StudentSpec
from moescope.studies.distill.splice import generation_table, splice_table, spliced
from moescope.studies.distill.students import LayerShape, Scaling, Student
from moescope.studies.distill.study import distill
from moescope.studies.distill.synthetic import DictionarySettings, DictionaryTeacher, dictionary_pairs
from moescope.studies.distill.teacher import Teacher
from moescope.studies.distill.training import Job, TrainSettings, train

__all__ = [
    "CONTROLS",
    "ArrayPairs",
    "Block",
    "DataSettings",
    "DictionarySettings",
    "DictionaryTeacher",
    "DistillSettings",
    "Evaluation",
    "Job",
    "LayerShape",
    "Pairs",
    "Scaling",
    "Student",
    "StudentSpec",
    "Teacher",
    "TrainSettings",
    "circuit_overlap",
    "control_pairs",
    "dictionary_pairs",
    "distill",
    "evaluate",
    "fvu",
    "generation_table",
    "load_dictionary",
    "load_student",
    "model_pairs",
    "nearest_directions",
    "nearest_neurons",
    "read_experts",
    "save_student",
    "scaling_of",
    "splice_table",
    "spliced",
    "store_pairs",
    "train",
]


class _Callable(ModuleType):
    """`moescope.distill(model, layer)` is what a user types; this folder bears the same name, so it answers the call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return distill(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
