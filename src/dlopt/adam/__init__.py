"""Adam and its variants. Import a method by name: `from dlopt.adam import Adafactor`."""

from dlopt.catalog import exports

__getattr__, __dir__ = exports("adam")
