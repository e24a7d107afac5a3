"""Loss by position on long texts: tables and picture of a run of `nll/text`, from its records alone."""
