"""depthlens: remove parts of a language model, many at a time, and measure exactly what each removal costs.

``docs/api.md`` lists every public name. Modules are imported on first use (`lazy_loader`, SPEC 1), so that ``import
depthlens`` and the command line start quickly.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.4.0"
