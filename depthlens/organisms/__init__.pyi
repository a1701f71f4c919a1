from .builder import Options as Options
from .builder import Organism as Organism
from .builder import Truth as Truth
from .builder import build as build
from .builder import truth as truth
