"""Configuration: its fields (schema), what a value may be (rules), and config.json (files)."""
