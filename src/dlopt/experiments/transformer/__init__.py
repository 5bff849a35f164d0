"""The experiments of topic `transformer`: half-lines, ablations, gradients, long sequences, whole poems."""
