"""Records in, text out: a table for the terminal, Markdown, and one self-contained HTML page."""
