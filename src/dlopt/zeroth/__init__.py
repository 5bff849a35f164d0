"""Zeroth-order optimizers: forward passes only. Import a method by name: `from dlopt.zeroth import MeZO`."""

from dlopt.catalog import exports

__getattr__, __dir__ = exports("zeroth")
