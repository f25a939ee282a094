"""eqconv: every way of computing an equivariant or a sparse convolution, proved equal and timed.

Importing this package is cheap. The operators live in :mod:`eqconv_cli.numpy`, :mod:`eqconv_cli.torch` and
:mod:`eqconv_cli.tensorflow`; the command line is ``eqconv``.
"""

__version__ = "0.1.0"
