"""Learning to act from recorded experience alone, or before going on in the world."""
