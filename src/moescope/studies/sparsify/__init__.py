"""Which neurons of a dense model need to work on a token, chosen by a coarse copy of the weights, and whether that pays."""
