"""The rule that compares an estimate of a claim with what was fixed before any result was seen.

The rule is in `Part.verdict`. An interval on one side of the threshold decides, however wide it is. An interval that
contains the threshold means "undecided" where it is narrow enough to show an effect that matters, and "cannot judge"
where it is not, because there are too few documents to expect an answer. Below 30 documents no interval counts: in
simulations with the truth at the threshold of C1, 20 documents called it supported in 7% of samples, 30 or more in
less than 5%.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from depthlens.analysis.stats import ALPHA

SUPPORTED, CONTRADICTED, UNDECIDED, CANNOT = "supported", "contradicted", "undecided", "cannot judge"
ABOVE, BELOW, DIFFERENT = 1, -1, 0
MIN_DOCS = 30
_MOST_TIMES = 100  # the documents at hand: a plan for more is not given


@dataclass(frozen=True)
class Spec:
    """What was fixed beforehand.

    Attributes:
        what: The effect, as a noun phrase.
        unit: Of the effect.
        threshold: The value that the claim compares the effect with.
        side: `ABOVE` or `BELOW` the threshold, or `DIFFERENT` from it.
        matters: The least distance from the threshold that matters.
    """

    what: str
    unit: str
    threshold: float
    side: int
    matters: float

    @property
    def claimed(self) -> str:
        """The claimed side in words."""
        return f"{ {ABOVE: 'above', BELOW: 'below', DIFFERENT: 'other than'}[self.side] } {self.threshold:g}"


@dataclass(frozen=True)
class Part:
    """An estimate, and what it says of its part of a claim.

    Attributes:
        spec: What was fixed beforehand.
        effect: Estimate; NaN where there is none.
        low: Lower end of its corrected interval.
        high: Upper end.
        n: Documents; the fewest of the tasks.
        tasks: ``task metric`` of each that was used.
        left: Why others were left out.
        p: Adjusted p-value of a further test that has to be below 0.05 to support; 0 where there is none.
        p_against: The same to contradict.
        why: Why there is no estimate, or why it cannot count; "" if it counts.
    """

    spec: Spec
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    tasks: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    p: float = 0.0
    p_against: float = 0.0
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """The part as JSON has it: None for NaN."""
        fields = asdict(self)
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Part:
        """The part that `as_json` wrote."""
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in fields.items()}
        values |= {"spec": Spec(**fields["spec"]), "tasks": tuple(fields["tasks"]), "left": tuple(fields["left"])}
        return cls(**values)

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def verdict(self) -> str:
        """Supported or contradicted where the whole interval is on one side of the threshold.

        `DIFFERENT` is supported where the interval excludes the threshold, and contradicted where the whole interval is
        nearer to it than what matters. Else too wide an interval (half of it more than what matters) says that nothing
        can be judged yet.
        """
        spec = self.spec
        if self.why or self.n < MIN_DOCS or not math.isfinite(self.low + self.high):
            return CANNOT
        low, high = self.low - spec.threshold, self.high - spec.threshold
        if spec.side == DIFFERENT:
            yes, no = low > 0 or high < 0, max(-low, high) < spec.matters
        else:
            yes, no = (low > 0, high < 0) if spec.side == ABOVE else (high < 0, low > 0)
        if yes and self.p < ALPHA:
            return SUPPORTED
        if no and self.p_against < ALPHA:
            return CONTRADICTED
        return CANNOT if self.half > spec.matters else UNDECIDED

    @property
    def wide(self) -> bool:
        """Whether the width of the interval is the only reason why there is no verdict."""
        return self.verdict == CANNOT and not self.why and math.isfinite(self.half)

    @property
    def needed(self) -> int | None:
        """About how many documents would be enough, because the width falls with the square root of their number.

        At least 30; else enough for half the interval to be what matters or, if it is already, the measured distance
        from the threshold. None where no number of documents helps, or more than a hundred times as many.
        """
        if not (self.wide or self.verdict == UNDECIDED):
            return None
        if self.n < MIN_DOCS and not self.low <= self.spec.threshold <= self.high:
            return MIN_DOCS
        goal = self.spec.matters if self.wide else abs(self.effect - self.spec.threshold)
        if not self.n or goal * math.sqrt(_MOST_TIMES) < self.half:
            return None
        documents = math.ceil(round(self.n * (self.half / goal) ** 2, 6))
        # None: the estimate is not in the middle of its interval, or only the p-value is missing
        return max(documents, MIN_DOCS) if max(documents, MIN_DOCS) > self.n else None
