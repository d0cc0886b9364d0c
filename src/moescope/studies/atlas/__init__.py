"""What every expert of a model is for: one page of cards, each confirmed on prompts that did not choose it."""
