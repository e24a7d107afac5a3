"""The files of a run: header, records, run folder, seal. Imports no torch."""
