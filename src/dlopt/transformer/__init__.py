"""The Transformer from basic modules: norms, positions, attention, feed-forward. Import a part from its own file."""
