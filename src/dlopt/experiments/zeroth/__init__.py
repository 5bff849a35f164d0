"""Experiments of topic `zeroth`: estimates of gradients, small networks, a language model, the official rules."""
