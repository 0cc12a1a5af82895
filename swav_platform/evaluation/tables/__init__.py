"""Results beside published figures: records, tables, reports and comparisons."""
