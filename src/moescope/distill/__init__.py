"""Distil an MLP layer into thousands of tiny experts, with the controls that make it evidence.

After "Secret mixtures of experts inside your LLM" (arXiv 2512.18452). :func:`distill` is the study; its parts (teachers,
pairs, students, training) can be used alone.
"""

from moescope.distill.controls import CONTROLS, control_pairs
from moescope.distill.data import ArrayPairs, Block, Pairs, scaling_of
from moescope.distill.evaluate import Evaluation, evaluate, fvu
from moescope.distill.layer_data import DataSettings, model_pairs, store_pairs
from moescope.distill.reading import read_experts
from moescope.distill.save import load_student, save_student
from moescope.distill.settings import DistillSettings
from moescope.distill.spec import StudentSpec
from moescope.distill.splice import splice_table, spliced
from moescope.distill.students import LayerShape, Scaling, Student
from moescope.distill.study import distill
from moescope.distill.synthetic import DictionarySettings, DictionaryTeacher, dictionary_pairs
from moescope.distill.teacher import Teacher
from moescope.distill.training import Job, TrainSettings, train

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
    "control_pairs",
    "dictionary_pairs",
    "distill",
    "evaluate",
    "fvu",
    "load_student",
    "model_pairs",
    "read_experts",
    "save_student",
    "scaling_of",
    "splice_table",
    "spliced",
    "store_pairs",
    "train",
]
