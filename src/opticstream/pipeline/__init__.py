"""Rules: what is ready, what to skip, what to redo; and the work on one item from claim to announcement. No Prefect."""
