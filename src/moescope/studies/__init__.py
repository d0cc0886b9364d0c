"""The studies, side by side: none imports another. Each is a folder with the same rooms: settings, what it measures, tables,
claims, figures, and the study itself.
"""

# Kind of result -> module with `entries`; by name, so that a kind's figures are imported only for its own results.
FIGURES = {
    "agreement": "moescope.studies.agreement.figures",
    "atlas": "moescope.studies.atlas.figures",
    "choice": "moescope.studies.choice.figures",
    "circuits": "moescope.studies.circuits.figures",
    "convert": "moescope.studies.convert.figures",
    "dynamics": "moescope.studies.circuits.figures",
    "distill": "moescope.studies.distill.figures",
    "exit": "moescope.studies.exit.figures",
    "prune": "moescope.studies.prune.figures",
    "residency": "moescope.studies.residency.figures",
    "robustness": "moescope.studies.robustness.figures",
    "route": "moescope.studies.route.figures",
    "scaling": "moescope.studies.circuits.figures",
    "signatures": "moescope.studies.signatures.figures",
    "sparsify": "moescope.studies.sparsify.figures",
    "steer": "moescope.studies.steer.figures",
    "targets": "moescope.studies.targets.figures",
    "transfer": "moescope.studies.transfer.figures",
}
