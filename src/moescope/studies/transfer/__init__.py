"""What two models' routing of the same prompts has in common, from likeness to a shared classifier."""
