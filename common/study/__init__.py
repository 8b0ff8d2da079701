"""From rows of results to a claim: search, aggregation, tests, tables, figures."""
