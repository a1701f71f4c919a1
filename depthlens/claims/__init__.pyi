from .registry import CLAIMS as CLAIMS
from .registry import Claim as Claim
from .registry import Evidence as Evidence
from .verdicts import Verdict as Verdict
from .verdicts import Verdicts as Verdicts
from .verdicts import headline as headline
from .verdicts import judge as judge
