"""Clinical cognition in words: findings, reports, keywords, templates. No torch."""
