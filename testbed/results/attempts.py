"""Which attempt at a point is kept. Only stolen CPU time and failures decide; what was measured has no say in it.

CPU time is stolen by the host of a virtual machine (``steal_pct``) and by other programs (``foreign_cpu_pct``). A point
is measured again while the host of a virtual machine steals CPU time, after a failure (``retry_failed``), and
if it is degraded (``retry_degraded``). All rows stay in results.parquet, and ``kept_because`` says in each of them why
its attempt is kept or not. Tables, figures, speed-ups and resumed runs use kept rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING

from testbed.results.column import ONLY_ATTEMPT, TEXT

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# CPU time of the cores above which a row is degraded; less than this is no reason to prefer an attempt.
STEAL_LIMIT_PCT = 5.0
FOREIGN_CPU_LIMIT_PCT = 10.0  # a third of one of two cores is 17
NOT_KEPT = "not kept"
LEAST = "lowest stolen time"
FIRST = "first attempt with so little stolen time"
SOUND = "only attempt without a failure"
MORE = f"{NOT_KEPT}: more stolen time"
LATER = f"{NOT_KEPT}: later, and no less stolen time"
FAILED = f"{NOT_KEPT}: failed"


@dataclass
class _Attempt:
    """What decides about an attempt. ok: all of its rows are. steal_pct: the highest of its rows. foreign_pct: of each
    row; their mean counts, because the kernel's clocks are too coarse for a short repeat.
    """

    ok: bool = True
    steal_pct: float = 0.0
    foreign_pct: list[float] = field(default_factory=list)

    @property
    def rank(self) -> tuple[bool, float]:
        """The lowest one is kept. Stolen time up to the limits counts as none."""
        foreign_pct = mean(self.foreign_pct)
        steal = self.steal_pct if self.steal_pct > STEAL_LIMIT_PCT else 0.0
        return not self.ok, steal + (foreign_pct if foreign_pct > FOREIGN_CPU_LIMIT_PCT else 0.0)


def with_reasons(frame: DataFrame, points: Sequence[Hashable]) -> DataFrame:
    """The rows with ``kept_because``. points: of each row.

    Of each point exactly one attempt is kept: the one with the least stolen time, and the first one if several have
    equally little or at most the limits. An attempt with a failed row loses to one without. Stolen time counts as 0
    where the system does not report it.
    """
    import pandas as pd

    numbers, ok = frame["attempt"].astype(int).tolist(), (frame["status"] == "ok").tolist()
    steal, foreign = (
        (frame[name] if name in frame else pd.Series(0.0, index=frame.index)).fillna(0.0).astype(float)
        for name in ("steal_pct", "foreign_cpu_pct")
    )
    found: dict[Hashable, dict[int, _Attempt]] = {}
    for point, number, sound, steal_pct, foreign_pct in zip(points, numbers, ok, steal, foreign, strict=True):
        attempt = found.setdefault(point, {}).setdefault(number, _Attempt())
        attempt.ok &= sound
        attempt.steal_pct = max(attempt.steal_pct, steal_pct)
        attempt.foreign_pct.append(foreign_pct)
    said = {point: _of_point(attempts) for point, attempts in found.items()}
    return frame.assign(
        kept_because=pd.Series(
            [said[point][number] for point, number in zip(points, numbers, strict=True)],
            index=frame.index,
            dtype=TEXT,
        )
    )


def _of_point(attempts: Mapping[int, _Attempt]) -> dict[int, str]:
    """Number of each attempt at a point -> why it is kept or not."""
    if len(attempts) == 1:
        return dict.fromkeys(attempts, ONLY_ATTEMPT)
    best = min(attempts, key=lambda number: (attempts[number].rank, number))
    rivals = [attempt for number, attempt in attempts.items() if number != best and attempt.ok == attempts[best].ok]
    equal = any(attempt.rank == attempts[best].rank for attempt in rivals)
    said = {best: FIRST if equal else LEAST if rivals else SOUND}
    for number, attempt in attempts.items():
        if number != best:
            lost = attempt.ok != attempts[best].ok
            said[number] = FAILED if lost else MORE if attempt.rank > attempts[best].rank else LATER
    return said


def kept(frame: DataFrame) -> Series[bool]:
    """For each row, whether its attempt is kept. Rows that do not say so are, because they are the only ones."""
    import pandas as pd

    if "kept_because" not in frame:
        return pd.Series(True, index=frame.index)
    return ~frame["kept_because"].fillna("").str.startswith(NOT_KEPT).astype(bool)
