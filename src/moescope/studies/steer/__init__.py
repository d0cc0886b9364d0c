"""Experts banned, forced, boosted or scaled, or neurons switched off: what that does, beside random ones."""
