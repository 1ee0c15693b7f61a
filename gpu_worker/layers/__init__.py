"""Building blocks of a decoder: small classes over plain tensors, used for inference only."""
