"""Ablations and conditions as plain data: what is removed, the text that says so, and words that mean many of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
