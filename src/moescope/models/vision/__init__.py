"""Models that read or make images."""
