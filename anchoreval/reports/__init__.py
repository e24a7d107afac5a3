"""Results for people to read: sentences, tables, pages."""
