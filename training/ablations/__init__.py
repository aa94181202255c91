"""What the papers claim, put to the test at equal budget with several seeds."""
