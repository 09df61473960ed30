"""Cameras of a real arm, of the emulator and of video files: newest frame with its capture time, never a queue."""
