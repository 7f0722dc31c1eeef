"""The only floor that knows Prefect: server, flows, deployments, events, Variables, locks and artifacts."""
