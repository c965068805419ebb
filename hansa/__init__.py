"""The `hansa` command and the demo: composes the roles. Nobody imports this package."""
