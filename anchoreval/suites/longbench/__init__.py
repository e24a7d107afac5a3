"""LongBench and LongBench-E: prompts, records, scores and averages."""
