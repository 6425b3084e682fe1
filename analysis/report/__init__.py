"""The report of one or several runs: page, tables and figures (``python -m analysis.report``)."""
