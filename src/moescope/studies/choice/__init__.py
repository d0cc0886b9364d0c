"""What a choice of neurons means: which are chosen together, and whether those in whose choice classes differ are a circuit."""
