"""A checkpoint with fewer experts, and what that costs beside random ones and fewer bits."""
