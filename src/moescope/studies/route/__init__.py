"""The task of a prompt, named from the model's first layers, or called unknown."""
