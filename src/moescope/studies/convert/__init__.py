"""From a dense language model to a standard mixture-of-experts checkpoint, with a verdict on whether it pays."""
