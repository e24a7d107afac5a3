"""LongBench v2: multiple-choice questions over long files."""
