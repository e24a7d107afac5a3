"""BABILong: facts of bAbI hidden in books."""
