"""The activations that the expert kernels know, by the names that configurations use, and the numbers kernels know them by."""

ACTIVATIONS = {"silu": 0, "swish": 0, "relu": 1, "gelu_pytorch_tanh": 2, "gelu_new": 2, "gelu": 3}
