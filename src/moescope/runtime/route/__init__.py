"""Routers that name a prompt's task while the model runs: their fit, their use, their files."""
