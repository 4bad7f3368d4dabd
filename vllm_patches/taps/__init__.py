"""What is heard at the verifier: `tap` wraps it once, the other modules listen. Only workers import these."""
