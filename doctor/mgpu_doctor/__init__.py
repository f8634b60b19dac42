"""The diagnostic doctor and linter for multi-GPU LLM jobs."""

__version__ = "0.1.0"
