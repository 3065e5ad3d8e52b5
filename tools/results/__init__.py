"""What came out: one comparison, one page, one table of a sweep."""
