"""Whether two recordings of the same tokens route alike: two engines, two precisions, a quantised and a full model."""
