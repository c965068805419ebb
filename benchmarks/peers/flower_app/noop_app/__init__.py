"""The work every system is measured with, as a Flower app."""
