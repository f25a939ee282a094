"""The commands' work without a terminal: it yields events and names no family."""
