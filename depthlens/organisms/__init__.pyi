from .builder import Options as Options
from .builder import compare as compare
from .builder import truth as truth
from .weights import build as build
