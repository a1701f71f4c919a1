"""The study's claims as tests that can fail and can hold, on any model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
