"""The bulk stop: a core that decides and is handed the time, and a thin driver that acts."""
