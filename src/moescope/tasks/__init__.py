"""Labelled texts and images: presets, files, Hub datasets, templates, group-aware splits, and what trivial cues alone score."""

from moescope.tasks.build import RenderedTask, slots, subset
from moescope.tasks.duplicates import Regrouped, near_duplicates, regroup
from moescope.tasks.folds import dealt_folds, group_folds, split_half
from moescope.tasks.images import IMAGE_PRESETS, ImageTask, Surface
from moescope.tasks.load import load_task, load_tasks
from moescope.tasks.presets import PRESETS, Preset, list_tasks
from moescope.tasks.prompts import PROMPT_SETS, Prompt, load_prompts
from moescope.tasks.spec import TaskSpec, parse_spec
from moescope.tasks.surface import (
    chosen_cue,
    fixed_wrap,
    matched_subset,
    surface_baselines,
    surface_cues,
    surface_features,
    surface_predictions,
)
from moescope.tasks.wikitext import articles, plain_text

__all__ = [
    "IMAGE_PRESETS",
    "PRESETS",
    "PROMPT_SETS",
    "ImageTask",
    "Preset",
    "Prompt",
    "Regrouped",
    "RenderedTask",
    "Surface",
    "TaskSpec",
    "articles",
    "chosen_cue",
    "dealt_folds",
    "fixed_wrap",
    "group_folds",
    "list_tasks",
    "load_prompts",
    "load_task",
    "load_tasks",
    "matched_subset",
    "near_duplicates",
    "parse_spec",
    "plain_text",
    "regroup",
    "slots",
    "split_half",
    "subset",
    "surface_baselines",
    "surface_cues",
    "surface_features",
    "surface_predictions",
]
