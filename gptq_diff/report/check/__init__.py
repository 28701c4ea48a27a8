"""What a check says, for people and for the readers of CI systems: pure readers of its report, without torch."""
