"""Exit strategies and the evidence they decide on."""
