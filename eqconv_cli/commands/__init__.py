"""One file a command: options to engine to report. No numerics here."""
