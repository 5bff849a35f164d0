"""Topic `adam`: Adam and its variants on CIFAR-10 and on a language model."""
