"""Which experts could be left out, and the loss that it adds, beside random ones."""
