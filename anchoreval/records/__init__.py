"""What stands on disk: header, records, run folder, seal; nothing here knows torch."""
