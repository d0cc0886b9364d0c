"""How far a monitor of the routing can be trusted: changes of a prompt, of precision and batches, and a searched suffix."""
