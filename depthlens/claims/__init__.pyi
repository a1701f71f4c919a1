from .claims import CLAIMS as CLAIMS
from .claims import Claim as Claim
from .evidence import Evidence as Evidence
from .verdicts import Verdicts as Verdicts
from .verdicts import judge as judge
