"""Evidence (what was observed, as JSON lines) and everything rendered from it."""
