"""The commands of `facetstream`, one a module, each with a click command named `command`."""
