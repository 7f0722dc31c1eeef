"""One module per step: read, compute, write atomically. No Prefect and no rules about when to run."""
