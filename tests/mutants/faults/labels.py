"""What is asked of labels that are not two classes."""

from __future__ import annotations

from tests.mutants.fault import faults

_CIRCUITS = "studies/circuits/"
FAULTS = faults(
    "circuits",
    "circuits_classes",
    (
        "class-sought-on-its-judges",
        "each class: selection",
        "a class's own circuit is chosen on all rows, those that judge it too",
        _CIRCUITS + "several.py",
        "selection=settings.selection, sums=sums,",
        'selection="global", sums=sums,',
        ("test_noise_tells_no_class",),
    ),
    (
        "criteria-chosen-on-their-judges",
        "several classes: criteria",
        "the circuit of another criterion is chosen on all rows",
        _CIRCUITS + "several.py",
        "by_criterion(criterion, sums.train(fold), features, settings)",
        "by_criterion(criterion, sums.total(), features, settings)",
        ("test_noise_tells_no_class",),
    ),
    (
        "class-beside-the-task's-cue",
        "each class: trivial cue",
        "the cue beside a class's own circuit is learnt for the whole task",
        _CIRCUITS + "several.py",
        "cues = read_cues(features, tokenizer)",
        "cues = found.cues",
        ("test_a_word_that_names_one_class_is_a_rival_of_that_class_alone",),
    ),
    (
        "common-class-named-first",
        "several classes: chance",
        "a class that is rare in training is named as rarely",
        _CIRCUITS + "several.py",
        "named = (scores / training_shares(features.y, features.folds)).argmax(axis=1)",
        "named = scores.argmax(axis=1)",
        ("test_a_rare_class_is_named_as_readily_as_a_common_one",),
    ),
    (
        "chance-of-two-classes",
        "several classes: chance",
        "chance is one half, whatever the number of classes",
        _CIRCUITS + "scorer.py",
        "return 1.0 / len(np.unique(self.y))",
        "return 0.5",
        ("test_what_holds_of_two_classes_alone_is_not_said_of_four",),
    ),
    (
        "every-class-by-the-best",
        "several classes: verdict",
        "that every class is named rests on the class that is named best",
        _CIRCUITS + "claims_several.py",
        'worst = rows.loc[rows["recall"].idxmin()]',
        'worst = rows.loc[rows["recall"].idxmax()]',
        ("test_every_class_is_judged_by_the_one_that_is_named_least",),
    ),
)
