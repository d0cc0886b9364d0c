"""What a saved classifier, router or mask needs to run, apart from the study that made it."""
