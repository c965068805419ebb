"""What a run's privacy mode is and costs: its governed terms, and the accounting of epsilon. Pure; loads no numpy."""
