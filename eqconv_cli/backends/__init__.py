"""The mathematics: one folder a family, in it one file a framework."""
