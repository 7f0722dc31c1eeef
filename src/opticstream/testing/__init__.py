"""Contract tests, naive references and small data for tests; runtime code never imports it."""
