"""What an encoder has learnt."""
