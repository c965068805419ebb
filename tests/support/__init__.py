"""What several tests share: keys, charters, journals."""
