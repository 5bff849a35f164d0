"""dlopt: optimization methods of deep learning as plain PyTorch objects, and a lab that compares them.

Import what you use by its full path, such as `from dlopt.adam import Adafactor`: the package itself imports nothing.
"""

__version__ = "0.1.0"
