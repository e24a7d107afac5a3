"""What people read: words, tables, pages."""
