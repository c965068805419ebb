"""The governance dashboard: pages over the chamber's views, and the door that says who may see them."""
