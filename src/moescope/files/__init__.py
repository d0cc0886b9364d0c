"""Files: written whole or not at all, and never outside the folder that was named."""
