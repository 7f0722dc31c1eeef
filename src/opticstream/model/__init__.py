"""Names of things: ids, acquisition layout, typed events, errors. Imports nothing else of OpticStream."""
