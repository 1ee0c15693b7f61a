"""Sampling as a pure function of logits, parameters, seed, position and the tokens so far."""
