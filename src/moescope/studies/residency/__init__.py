"""Whether a cache of experts would help: what policies load, how few it could be, and which device should hold what."""
