"""Record which experts each token is sent to."""
