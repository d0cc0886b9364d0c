"""Results shown: the claims table (claims), the figures (registry), and one HTML page that opens offline (html)."""
