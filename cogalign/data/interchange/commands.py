"""What `cogalign data export` and `cogalign data import FORMAT` call."""

from __future__ import annotations

from cogalign.data.interchange.exporting import ExportSummary, export_case_set
from cogalign.data.interchange.formats import FORMATS
from cogalign.data.interchange.importing import ImportSummary, import_interchange

__all__ = ["FORMATS", "ExportSummary", "ImportSummary", "export_case_set", "import_interchange"]
