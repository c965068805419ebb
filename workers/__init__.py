"""What runs at a partner's site: it fetches its orders, checks them itself, trains, and hands in signed updates."""
