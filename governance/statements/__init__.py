"""Statements: what a partner is charged in a period, signed, provable, countersigned. Start with `issuing`."""
