"""The calendar in whole numbers: what year, day and hour a moment lies in, by operations that ONNX has.

Shape suffixes: N rows, P parts.
"""

import torch
from torch import Tensor

MISSING_TIME = -(2**63)  # which is how NumPy keeps `NaT`
MICROSECONDS_PER_SECOND, SECONDS_PER_DAY = 10**6, 86_400
DAYS_PER_ERA, YEARS_PER_ERA = 146_097, 400  # after which the calendar repeats itself
MARCH_OF_YEAR_0 = 719_468  # days before 1970


def calendar_parts(moments_N1: Tensor) -> Tensor:
    """Microseconds since 1970 to `[N, P]` float64: `CALENDAR` of `app.learning.features`, NaN where one is missing.

    The proleptic Gregorian calendar, counted in years that begin in March (Hinnant, "chrono-compatible low-level date
    algorithms"). `//` and `%` stay whole numbers in ONNX, `torch.div` that cuts off goes through float32 there.
    """
    seconds = moments_N1 // MICROSECONDS_PER_SECOND
    days = seconds // SECONDS_PER_DAY
    era, day = (days + MARCH_OF_YEAR_0) // DAYS_PER_ERA, (days + MARCH_OF_YEAR_0) % DAYS_PER_ERA
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    day = day - (365 * year + year // 4 - year // 100)
    month = (5 * day + 2) // 153  # from 0, which is March
    day = day - (153 * month + 2) // 5 + 1
    month = torch.where(month < 10, month + 3, month - 9)
    year = year + era * YEARS_PER_ERA + (month <= 2)
    clock = [seconds // 3600 % 24, seconds // 60 % 60, seconds % 60]
    parts = torch.cat([year, month, day, (days + 3) % 7 + 1, *clock], 1).double()
    return torch.where(moments_N1 == MISSING_TIME, torch.nan, parts)
