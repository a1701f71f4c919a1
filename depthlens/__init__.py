"""depthlens: remove parts of a language model, many at a time, and measure exactly what each removal costs.

``docs/api.md`` lists every public name. Modules are imported on first use (`lazy_loader`, SPEC 1), so that ``import
depthlens`` and the command line start quickly.
"""

from typing import Any

import lazy_loader

_found, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    try:
        return _found(name)
    except AttributeError:
        if name.startswith("_") or name in __all__:  # a fault inside a module of ours is raised as it is
            raise
    from depthlens.errors import OF_PACKAGE, refuse_name

    refuse_name("depthlens", name, OF_PACKAGE, __all__)
