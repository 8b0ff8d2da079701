"""Search, and the analysis of results: aggregation, significance tests, tables, figures."""
