"""The embedded default: the four servers as child processes, each an address; no Docker, no installation by hand."""
