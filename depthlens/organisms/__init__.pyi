from .builder import Options as Options
from .builder import Truth as Truth
from .builder import truth as truth
from .weights import Organism as Organism
from .weights import build as build
