"""The live engine, which stops networks early, and its wall-clock and energy measurements."""
