"""Results shown: the claims table (claims), the figures (figures), and one HTML page that opens offline (html).

Drawing lives in :mod:`moescope.report.registry` and :mod:`moescope.report.html`, which are imported when first needed, since
matplotlib is slow to import.
"""

from moescope.report.claims import claims_table, claims_text
from moescope.report.format import headline
from moescope.study.claims import claims_frame

__all__ = ["claims_frame", "claims_table", "claims_text", "headline"]
