from .claims import CLAIMS as CLAIMS
from .evidence import Evidence as Evidence
from .verdicts import Verdicts as Verdicts
from .verdicts import judge as judge
