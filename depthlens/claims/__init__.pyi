from .able import tested as tested
from .claims import CLAIMS as CLAIMS
from .evidence import Evidence as Evidence
from .sweeps import ROLES as ROLES
from .sweeps import ask as ask
from .verdicts import Verdicts as Verdicts
from .verdicts import judge as judge
