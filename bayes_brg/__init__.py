"""Bayesian neural-network posteriors seen through the renormalisation group.

Networks are NumPyro models; their posteriors flow under the Bayesian renormalisation group, which returns parameters
whose Fisher information is below a cutoff Λ to the prior; each posterior on the flow is read as a field theory through
the cumulants of the network's output.
"""

import lazy_loader

__version__ = "0.1.0"

# The public names and where they live are listed once, in __init__.pyi; each is imported when it is first asked for, so
# that importing the package imports neither JAX nor a plotting library, and starts no backend.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
