"""The page, tables and figures about results (python -m analysis.report)."""
