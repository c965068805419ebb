"""Measurements of what Hansa promises. Each module measures one area, prints a table and writes its JSON."""
